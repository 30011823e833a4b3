"""Training over Lightning."""
