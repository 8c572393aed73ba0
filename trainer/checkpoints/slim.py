"""Checkpoints to hand on: the weights alone, without the optimiser's state, in half precision if asked for."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from trainer.checkpoints.files import Header, find_checkpoint, read_header, read_tensors, write_checkpoint_at
from trainer.errors import CheckpointError

__all__ = ["slim_checkpoint"]


def slim_checkpoint(path: str | Path, out: Path, *, half: bool = False) -> tuple[Path, Header]:
    """Write the weights of a checkpoint, or of the newest one of a run, as a checkpoint without an optimiser.

    out   the folder to write; must not exist.
    half  round float32 weights to float16; they are float32 again when loaded.

    Raises CheckpointError for a checkpoint that is missing, damaged or within an epoch, for weights that float16 cannot
    hold, and where `out` exists.
    """
    found = find_checkpoint(path)
    header = read_header(found)
    if header.under_way is not None:
        raise CheckpointError(f"{found} was written within an epoch; expected a checkpoint at the end of an epoch.")
    if out.exists():
        raise CheckpointError(f"{out} already exists. Remove it, or choose another name.")
    weights = read_tensors(found, header)
    if half:
        weights = {name: _rounded(name, value) for name, value in weights.items()}
    slim = replace(header, files={}, loss_scale=None)
    return write_checkpoint_at(out, slim, weights, None), header


def _rounded(name: str, value: Tensor) -> Tensor:
    if value.dtype != torch.float32:  # counters of batch norms stay what they are
        return value
    small = value.half()
    if bool((small.isinf() & value.isfinite()).any()):
        raise CheckpointError(f"{name} has values beyond float16's 65504; keep it in float32.")
    return small
