"""Settings as frozen dataclasses, and the presets."""
