"""How long a test waits for what never takes long."""

__all__ = ["HANG"]

HANG = 900.0
"""Seconds. A limit tells a hang from work and is no measure of speed: on a loaded machine the
same work takes many times as long. Half of pytest's own limit, so that the wait that hung is the one that is named."""
