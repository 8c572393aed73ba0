"""Argument checks shared by the public operators: types, dtypes, shapes, devices; never values, never a device sync."""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["check_choice", "check_clouds", "check_count", "check_same_batch"]


def check_clouds(function: str, name: str, points: Tensor, *, may_be_empty: bool = False) -> None:
    """Require a ``[B, N, 3] float32`` tensor, with N >= 1 unless it may be empty."""
    if not isinstance(points, Tensor):
        raise TypeError(
            f"{function}: {name} must be a torch.Tensor [B, N, 3] float32, got {type(points).__name__}; "
            f"convert it with torch.as_tensor"
        )
    if points.dtype != torch.float32:
        raise TypeError(f"{function}: {name} must be float32, got {points.dtype}; convert it with {name}.float()")
    if points.ndim != 3 or points.shape[2] != 3:
        raise ValueError(
            f"{function}: {name} must be [B, N, 3], got {list(points.shape)}; a single cloud [N, 3] needs {name}[None]"
        )
    if points.shape[1] == 0 and not may_be_empty:
        raise ValueError(
            f"{function}: {name} must have at least one point per cloud, got {list(points.shape)}; drop empty clouds "
            "first"
        )


def check_count(function: str, name: str, value: int, *, limit: int, limit_name: str) -> None:
    """Require ``1 <= value <= limit``."""
    if not 1 <= value <= limit:
        raise ValueError(
            f"{function}: {name} = {value} is outside 1..{limit} ({limit_name}); ask for fewer or pass larger clouds"
        )


def check_choice(function: str, name: str, value: str, choices: Sequence[str]) -> None:
    """Require ``value`` to be one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{function}: {name} = {value!r} is not known; choose one of {', '.join(choices)}")


def check_same_batch(function: str, first_name: str, first: Tensor, second_name: str, second: Tensor) -> None:
    """Require the same batch size and device."""
    if first.shape[0] != second.shape[0]:
        raise ValueError(
            f"{function}: {first_name} has {first.shape[0]} clouds and {second_name} has {second.shape[0]}; both must "
            "have the same batch size"
        )
    if first.device != second.device:
        raise ValueError(
            f"{function}: {first_name} is on {first.device} and {second_name} on {second.device}; "
            f"move both to one device"
        )
