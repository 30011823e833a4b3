"""Metrics, their reference, and the protocol stamped on each number."""
