"""Noise schedules, denoisers, the loss, samplers and guidance."""
