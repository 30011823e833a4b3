"""A stand-in for Colab's own package, in so far as the notebooks use it; COLAB_DRIVE says how Drive behaves."""

from google.colab import drive, files

__all__ = ["drive", "files"]
