"""Weights files: ours, autoencoders, and those that others published."""
