"""How long a test waits for what never takes long, and how it interrupts."""

import signal

__all__ = ["HANG", "heed_interruptions"]

HANG = 900.0
"""Seconds. A limit tells a hang from work and is no measure of speed: on a loaded machine the
same work takes many times as long. Half of pytest's own limit, so that the wait that hung is the one that is named."""


def heed_interruptions() -> None:
    """A shell starts background jobs with SIGINT ignored, and children inherit that: the test must not depend on it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
