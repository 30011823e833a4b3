"""What the notebooks' cells call."""
