"""Images: found, decoded, cropped, batched, cached as latents."""
