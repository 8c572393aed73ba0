"""Filling of towers with weights: checked tensors, their hash, and seeded random ones."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pipeline.errors import TeacherError
from pipeline.teacher.weights import TowerWeights

__all__ = ["DTYPES", "fill_tower", "seeded", "weights_hash"]

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_KEYS_SHOWN = 4
_random_state = threading.Lock()  # the generator that fills new modules belongs to the whole process


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Give modules created inside the weights of `seed`; the caller's generator is left unchanged."""
    with _random_state, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def fill_tower(tower: nn.Module, weights: TowerWeights, architecture: str) -> None:
    """Load weights into the tower; every key and shape must fit, and all faults are reported together."""
    expected = tower.state_dict()
    given = {key: value for key, value in weights.tensors.items() if isinstance(value, Tensor)}
    faults = []
    missing = [key for key in expected if key not in given]
    unexpected = [key for key in given if key not in expected]
    reshaped = [
        f"{key} {tuple(given[key].shape)} for {tuple(value.shape)}"
        for key, value in expected.items()
        if key in given and given[key].shape != value.shape
    ]
    for what, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped)):
        if keys:
            more = ", ..." if len(keys) > _KEYS_SHOWN else ""
            faults.append(f"{len(keys)} {what}: {', '.join(keys[:_KEYS_SHOWN])}{more}")
    if faults:
        raise TeacherError(
            f"{weights.source}: its {len(given)} tensors do not fit the {len(expected)} of {architecture}'s vision "
            "tower:\n"
            "    " + "\n    ".join(faults) + "\n  Set teacher.architecture to the architecture of these weights."
        )
    tower.load_state_dict(given)


def weights_hash(tower: nn.Module) -> str:
    """Hash (name, shape, little-endian float32 bytes) of every tensor by SHA-256, the same for every file format."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tower.state_dict().items()):
        digest.update(json.dumps([name, list(tensor.shape)]).encode())
        digest.update(tensor.float().contiguous().numpy().astype("<f4", copy=False).data)
    return digest.hexdigest()
