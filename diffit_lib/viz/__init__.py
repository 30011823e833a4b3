"""Looking inside a trained network: attention, the time token, trajectories, as tensors, Figures and widgets."""
