"""How long a test waits for what never takes long."""

__all__ = ["HANG"]

HANG = 900.0
"""Seconds. A limit tells a hang from work and is no measure of speed: with ten busy processes on two cores, what takes
10 s alone took over 300 s. Half of pytest's own limit, so that the wait that hung is the one that is named."""
