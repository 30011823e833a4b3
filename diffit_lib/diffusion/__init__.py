"""The method: noise schedules, denoisers, the loss, samplers, guidance."""
