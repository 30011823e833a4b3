"""From weights and seeds to images."""
