"""The reference implementation's `.pth` files: read without running anything in them, and written.

A file is a pickle inside a zip; `pipeline.teacher.weights.read_pickled` says what is built of one and what is refused.
"""

import hashlib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor

from pipeline.errors import TeacherError
from pipeline.teacher.weights import check_kind, own_items, read_pickled
from teacher_cache.foreign import without_wrappers
from trainer.errors import CheckpointError

__all__ = ["PREFIX", "TEACHER", "ReferenceFile", "read_reference", "read_teacher", "write_reference"]

PREFIX = "module."  # put before every name by data-parallel wrappers
TEACHER = "clip_model."  # put before the frozen teacher's names
WEIGHTS = ("base_model", "model_state_dict", "model")  # where a file has its weights, in the order looked for
DEPTH = 4  # of nested metrics
SHOWN = 6  # names in one message


@dataclass(frozen=True, kw_only=True)
class ReferenceFile:
    """The contents of a reference checkpoint.

    name       of the file, without its folder
    sha256     of its bytes
    weights    where its weights stand: "base_model", "model_state_dict", "model", or "" for a bare state dict
    prefix     "module." where every name has it, or ""
    entries    the model's tensors, names without prefix, in the file's order
    teacher    the frozen teacher's tensors, names without either prefix, in the file's order
    optimizer  the optimiser's state dict as it is, or None
    numbers    everything else that is plain: epoch, metrics, best_metrics and the like
    skipped    names of what else there is and was not read
    """

    name: str
    sha256: str
    weights: str
    prefix: str
    entries: dict[str, Tensor]
    teacher: dict[str, Tensor] = field(default_factory=dict)
    optimizer: Mapping[str, Any] | None = None
    numbers: dict[str, Any] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()


def read_reference(path: str | Path) -> ReferenceFile:
    """Read one of the reference's checkpoints, or a bare state dict of its names. Tensors stay mapped to the file.

    Raises CheckpointError for a file that is absent, damaged, of another kind, or needs more than data to be read.
    """
    path = Path(path)
    content = _load(path)
    weights = next((name for name in WEIGHTS if isinstance(content.get(name), dict)), "")
    prefix, state = _state(content[weights] if weights else content, path)
    numbers: dict[str, Any] = {}
    skipped: list[str] = []
    rest = {name: value for name, value in content.items() if weights and name != weights}
    optimizer = rest.pop("optimizer", None)
    for name, value in rest.items():
        try:
            numbers[str(name)] = _plain(value)
        except TypeError:
            skipped.append(str(name))
    return ReferenceFile(
        name=path.name,
        sha256=_hash(path),
        weights=weights,
        prefix=prefix,
        entries={name: value for name, value in state.items() if not name.startswith(TEACHER)},
        teacher={name.removeprefix(TEACHER): value for name, value in state.items() if name.startswith(TEACHER)},
        optimizer=optimizer if isinstance(optimizer, dict) else None,
        numbers=numbers,
        skipped=tuple(skipped),
    )


def read_teacher(path: str | Path) -> dict[str, Tensor]:
    """Read CLIP's tensors, image and text tower, under OpenAI's names.

    The file is a state dict in OpenAI's layout (safetensors, or a PyTorch file of tensors alone), or one of the
    reference's pre-training checkpoints.

    Raises CheckpointError for what is neither.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        try:
            if path.is_file():
                check_kind(path)
            found = load_file(path)
        except TeacherError as error:
            raise CheckpointError(str(error)) from None
        except (safetensors.SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} cannot be read as safetensors ({error}). Download it again.") from None
    else:
        content = _load(path)
        # OpenAI's own archives carry three numbers beside the weights, which the reference's model does not hold
        bare = {n: v for n, v in content.items() if n not in ("input_resolution", "context_length", "vocab_size")}
        weights = next((name for name in WEIGHTS if isinstance(content.get(name), dict)), None)
        found = _state(content[weights] if weights else bare, path)[1]
    within = {name.removeprefix(TEACHER): value for name, value in found.items() if name.startswith(TEACHER)}
    teacher = within or found
    absent = [name for name in ("visual.conv1.weight", "visual.proj", "text_projection") if name not in teacher]
    if absent:
        raise CheckpointError(
            f"{path} holds no CLIP model: {first_few(absent)} not among its {len(found)} tensors "
            f"({first_few(found)}).\n"
            "  Expected a state dict in OpenAI's layout with image and text tower, or a pre-training checkpoint of the "
            "reference."
        )
    return teacher


def write_reference(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write a `.pth` file atomically. Raises CheckpointError if something already exists at `path`."""
    path = Path(path)
    if path.exists():
        raise CheckpointError(f"{path} already exists; nothing was written. Remove it, or choose another name.")
    if not path.parent.is_dir():
        raise CheckpointError(f"{path.parent} is not a directory, so {path.name} cannot be written. Create it first.")
    temporary = path.with_name(f".writing-{path.name}-{os.getpid()}")
    try:
        with temporary.open("xb") as stream:  # an open file, because torch writes the name of a path into the archive
            torch.save(dict(content), stream)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)


def first_few(names: Any) -> str:
    """Format the first few of several names, and how many more there are."""
    names = [str(name) for name in names]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return (", ".join(names[:SHOWN]) or "nothing") + more


def _load(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file; expected a checkpoint of the reference, usually NAME.pth.")
    try:
        content = read_pickled(path, mapped=True)
    except TeacherError as error:
        raise CheckpointError(str(error)) from None
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path} contains a {type(content).__name__}; expected a dictionary with the weights under one of "
            f"{', '.join(WEIGHTS)}, or a bare state dict."
        )
    return own_items(content)


def _state(state: dict[Any, Any], path: Path) -> tuple[str, dict[str, Tensor]]:
    """Return the prefix that all names share, and the tensors without it."""
    state = own_items(state)
    odd = [name for name, value in state.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    if odd or not state:
        found = f"other types at {first_few(odd)}" if odd else "an empty one"
        raise CheckpointError(
            f"{path}: expected a state dict of names and tensors, found {found}.\n"
            f"  The weights must stand under one of {', '.join(WEIGHTS)}, or be a bare state dict."
        )
    prefix = without_wrappers(list(state))
    bare = prefix or PREFIX  # if only some names have it: stripped too, collisions are refused below
    plain = {name.removeprefix(bare): value.detach() for name, value in state.items()}
    if len(plain) < len(state):
        double = [name for name in state if name.startswith(bare) and name.removeprefix(bare) in state]
        raise CheckpointError(
            f"{path}: names occur both with and without the prefix `{bare}`: {first_few(double)}. Expected one of the "
            "two."
        )
    _check_storage(plain, path)
    return prefix, plain


def _check_storage(state: Mapping[str, Tensor], path: Path) -> None:
    """Check storages: a few bytes can describe a tensor of any size (by strides of 0), or one not in memory at all."""
    odd = [
        name for name, value in state.items() if value.layout != torch.strided or value.device.type != "cpu"
    ]  # fmt: skip
    if odd:
        raise CheckpointError(
            f"{path}: not dense CPU tensors: {first_few(odd)}. The reference does not write such files."
        )
    described, held = sum(value.nbytes for value in state.values()), path.stat().st_size
    if described > held:
        raise CheckpointError(
            f"{path} describes tensors of {described} bytes but holds {held} bytes. The reference does not write such "
            "files."
        )


def _plain(value: Any, depth: int = 0) -> Any:
    """Return numbers, text, and dicts and lists of them, as JSON has them. Raises TypeError for anything else."""
    if isinstance(value, Tensor) and value.ndim == 0 and value.device.type == "cpu":
        value = value.item()
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if depth < DEPTH and isinstance(value, dict):
        return {str(name): _plain(item, depth + 1) for name, item in dict.items(value)}
    if depth < DEPTH and isinstance(value, list | tuple):
        return [_plain(item, depth + 1) for item in value]
    raise TypeError(type(value).__name__)


def _hash(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
