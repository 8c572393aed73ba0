"""Damage to files by chance, and a bound of the memory that reading one may take."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hypothesis import strategies as st

__all__ = ["MEMORY", "bounded_memory", "flipped"]

MEMORY = 2**30  # beyond what the process has: files of some kilobytes need far less, and a threshold is 64 MB


@contextmanager
def bounded_memory() -> Iterator[None]:
    """Within, the process may grow by MEMORY; more is a MemoryError, and so a MachineFault."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    low, high = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, high))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (low, high))


@st.composite
def flipped(draw: st.DrawFn, data: bytes) -> bytes:
    """Bytes with some changed, cut out or doubled; often none."""
    raw = bytearray(data)
    for _ in range(draw(st.sampled_from([0, 0, 1, 1, 2, 5]))):
        # Not in the range of the size: HDF5 writes the same content in files of sizes that differ by a few bytes.
        at = draw(st.integers(0, 2**31 - 1)) % len(raw)
        match draw(st.sampled_from(["bit", "byte", "ones", "zeros", "out", "in"])):
            case "bit":
                raw[at] ^= 1 << draw(st.integers(0, 7))
            case "byte":
                raw[at] = draw(st.integers(0, 255))
            case "ones":
                raw[at : at + 4] = b"\xff" * 4
            case "zeros":
                raw[at : at + 8] = bytes(8)
            case "out":
                del raw[at : at + draw(st.integers(1, 40))]
            case "in":
                raw[at:at] = raw[at : at + draw(st.integers(1, 100))]
        if not raw:
            break
    return bytes(raw[: draw(st.sampled_from([len(raw)] * 9 + [len(raw) // 2]))])
