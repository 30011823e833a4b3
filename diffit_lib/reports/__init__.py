"""What is said of a training run: metrics on the way, curves, a page, a diagnosis, its cost."""
