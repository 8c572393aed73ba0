"""The most memory that this process has held."""

import sys

import torch

__all__ = ["peak_memory"]


def peak_memory(device: torch.device) -> dict[str, int]:
    """Return the process's peaks so far, in bytes; 0 where that is not known.

    ->  "memory": resident, whatever ran in the process before; "gpu_memory": allocated by torch on the device.
    """
    gpu = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return {"memory": _resident(), "gpu_memory": int(gpu)}


def _resident() -> int:
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return int(getattr(psutil.Process().memory_info(), "peak_wset", 0))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else int(peak) * 1024  # kilobytes everywhere else
