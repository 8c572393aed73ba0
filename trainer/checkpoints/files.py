"""Checkpoints: safetensors and JSON in a directory that appears complete or not at all.

    RUN/checkpoints/epoch-0010/   after 10 epochs; epoch-0010-step-000520: within the next one, after 520 steps in all
        model.safetensors         the student's weights and buffers, under their names in the model
        optimizer.safetensors     AdamW's state, `<what>/<parameter>`: exp_avg, exp_avg_sq, step; not in imported ones
        checkpoint.json           Header: settings of all sections, recipe of the cache, metrics, sizes and hashes

A checkpoint is written under a temporary name, flushed to the disk and renamed; what a killed run leaves behind is not
a checkpoint and is removed by the next run. Nothing is unpickled. Two runs of one experiment on one machine write the
same bytes: times and paths are kept out.
"""

import errno
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from teacher_cache.storage.atomic import read_regular, write_file
from teacher_cache.system import sync_directory
from trainer.checkpoints.under_way import is_under_way
from trainer.errors import CheckpointDamaged, CheckpointError

__all__ = [
    "EMBEDDED",
    "Header",
    "checkpoints",
    "clean_leftovers",
    "find_checkpoint",
    "flatten_optimizer",
    "latest",
    "prune",
    "read_header",
    "read_tensors",
    "restore_optimizer",
    "restore_training",
    "sealed_header",
    "set_damaged_aside",
    "write_checkpoint",
    "write_checkpoint_at",
    "write_folder",
]

logger = logging.getLogger(__name__)

EMBEDDED = Path(__file__).parent / "embedded"  # the package's own encoder, by the name "embedded"
FORMAT, VERSION = "i2p-checkpoint", 1
HEADER, MODEL, OPTIMIZER = "checkpoint.json", "model.safetensors", "optimizer.safetensors"
CONFIG = "config.json"  # of a folder for a hub: the header stands in it as "checkpoint"
HEADER_LIMIT = 16 * 2**20  # bytes; a real header has a few thousand
KINDS = ("pretraining", "classifier", "segmentation")
ADDED = ("kind", "origin", "under_way")  # entries that a header may lack: pretraining, None, None
_NAME = re.compile(r"epoch-(\d{4,})(?:-step-(\d{6,}))?")
_LEFTOVER = re.compile(r"\.(?:writing-.+-\d+|removing-epoch-\d{4,}(?:-step-\d{6,})?)")


@dataclass(frozen=True, kw_only=True)
class Header:
    """The contents of checkpoint.json.

    epoch       epochs completed; step: optimiser steps taken
    config      section name -> settings, JSON types only
    cache       recipe (hash) and records of the cache that was trained on; basis (hash) if its channels are its own;
                shapes (digest) if it was a selection of the cache's; further (a list of recipe and basis) if there
                were further teachers
    teacher     channels and views of the teacher's maps, which shape the model's 2D head; further (a list of what
                trainer.models.student.Further says) if there were further teachers
    metrics     of the epoch just completed
    loss_scale  state of float16 loss scaling, None for other precisions
    versions    of this package, torch, numpy and python
    files       name -> {"bytes", "sha256"}; filled in by write_checkpoint
    kind        whose weights these are: "pretraining", or the fine-tuned "classifier" or "segmentation"
    under_way   of a checkpoint within an epoch: "steps" of it that are done, the sums over them as "totals" (see
                `checkpoints.under_way`), damaged records "skipped" in them; None between epochs
    origin      for a checkpoint that was converted, from what; see `checkpoints.reference.convert`. None for our own
    """

    epoch: int
    step: int
    config: dict[str, dict[str, Any]]
    cache: dict[str, Any]
    teacher: dict[str, Any]
    metrics: dict[str, Any] = field(default_factory=dict)
    loss_scale: dict[str, Any] | None = None
    versions: dict[str, str] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    kind: str = "pretraining"
    origin: dict[str, Any] | None = None
    under_way: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        """Name of the checkpoint's folder."""
        return f"epoch-{self.epoch:04d}" + (f"-step-{self.step:06d}" if self.under_way else "")


def write_checkpoint(
    run_dir: Path, header: Header, model: Mapping[str, Tensor], optimizer: Mapping[str, Tensor]
) -> Path:
    """Write `RUN/checkpoints/<header.name>` atomically and return it; an existing one of that name is an error."""
    target = _folder(run_dir) / header.name
    if target.exists():
        raise CheckpointError(
            f"{target} already exists, although this run has not written it. Another run may be using {run_dir}."
        )
    return write_checkpoint_at(target, header, model, optimizer)


def write_checkpoint_at(
    target: Path, header: Header, model: Mapping[str, Tensor], optimizer: Mapping[str, Tensor] | None
) -> Path:
    """Write the checkpoint `target` itself, which must not exist, atomically; no optimizer.safetensors for None."""
    blobs = {MODEL: save_tensors(_stored(model))}
    if optimizer is not None:
        blobs[OPTIMIZER] = save_tensors(_stored(optimizer))
    files = {name: {"bytes": len(blob), "sha256": hashlib.sha256(blob).hexdigest()} for name, blob in blobs.items()}
    content = sealed_header({**asdict(header), "files": files})
    blobs[HEADER] = (json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()
    write_folder(target, blobs)
    return target


def write_folder(target: Path, blobs: Mapping[str, bytes]) -> None:
    """Write a folder of files, which must not exist, atomically and durably: whole or not at all."""
    temporary = target.with_name(f".writing-{target.name}-{os.getpid()}")
    temporary.mkdir(parents=True)
    try:
        for name, blob in blobs.items():
            write_file(temporary / name, [blob], name)
        # Contents and entries are on disk before the name that makes them a checkpoint.
        sync_directory(temporary)
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_directory(target.parent)


def sealed_header(header: Mapping[str, Any]) -> dict[str, Any]:
    """What a file says of a header (its fields as JSON types): with format, version, and the hash of all of it."""
    content = {"format": FORMAT, "version": VERSION, **header}
    return {**content, "sha256": _digest_of(content)}


def checkpoints(run_dir: Path) -> list[Path]:
    """List the complete checkpoints of a run, oldest first."""
    folder = _folder(run_dir)
    if not folder.is_dir():
        return []
    found = [
        (int(match[1]), int(match[2] or 0), path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))
    ]
    return [path for *_, path in sorted(found) if (path / HEADER).is_file()]


def latest(run_dir: Path) -> Path | None:
    """Return the newest complete checkpoint of a run, or None."""
    found = checkpoints(run_dir)
    return found[-1] if found else None


def find_checkpoint(path: str | Path) -> Path:
    """Find the checkpoint that `path` means: itself, or the newest one of the run directory `path`.

    The text "embedded" means the package's own encoder; a folder of that name is "./embedded".
    """
    path = EMBEDDED if path == "embedded" else Path(path)
    if (path / HEADER).is_file() or _is_hub_folder(path):
        return path
    found = latest(path.parent if path.name == "checkpoints" else path)
    if found is None:
        raise CheckpointError(
            f"{path} is neither a checkpoint (a folder with {HEADER}) nor a run with a checkpoint in its folder "
            "'checkpoints'. Give a run directory, one of its checkpoints/epoch-NNNN, or embedded."
        )
    return found


def read_header(path: Path) -> Header:
    """Read the header of a checkpoint. Raises CheckpointError for anything but a sound header of this version."""
    file = path / HEADER
    if not file.exists() and _is_hub_folder(path):
        file = path / CONFIG
    try:
        data = read_regular(file, HEADER_LIMIT)
        if len(data) > HEADER_LIMIT:
            raise CheckpointError(
                f"{file} has {file.stat().st_size} bytes; expected at most {HEADER_LIMIT}. It is not a checkpoint "
                "header."
            )
        content = json.loads(data)
    except OSError as error:
        raise _unreadable(file, path, error) from None
    except (ValueError, RecursionError) as error:
        raise CheckpointDamaged(f"{file} is not valid JSON ({error}). {_remedy(path)}") from None
    if file.name == CONFIG and isinstance(content, dict):
        content = content.get("checkpoint")
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise CheckpointError(f"{file} is not marked as an {FORMAT}. It was not written by this program.")
    sealed = content.pop("sha256", None)  # absent from the headers of 0.1.0
    version = content.pop("version", None)
    if version != VERSION:
        raise CheckpointError(f"{file} has version {version!r}; this program reads version {VERSION}.")
    if sealed is not None and sealed != _digest_of({"format": FORMAT, "version": version, **content}):
        raise CheckpointDamaged(f"{file} does not match the sha256 it contains: it is damaged. {_remedy(path)}")
    wanted = {f.name for f in fields(Header)}
    odd = sorted(set(content) ^ (wanted - (set(ADDED) - set(content))))
    if odd:
        raise CheckpointError(f"{file}: missing or unknown entries {odd}. {_remedy(path)}")
    kinds: dict[str, Any] = {"epoch": int, "step": int, "loss_scale": dict | None, "kind": str}
    kinds |= {"origin": dict | None, "under_way": dict | None}
    for name, value in content.items():
        kind = kinds.get(name, dict)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise CheckpointError(f"{file}: {name} is {value!r}, not of the expected type. {_remedy(path)}")
    if content.get("kind", KINDS[0]) not in KINDS:
        raise CheckpointError(f"{file}: kind is {content['kind']!r}; this program reads {', '.join(KINDS)}.")
    if not is_under_way(content.get("under_way")):
        raise CheckpointError(
            f"{file}: under_way is {content['under_way']!r}, not of the expected form. {_remedy(path)}"
        )
    return Header(**content)


def _is_hub_folder(path: Path) -> bool:
    """Tell whether a folder is one for a hub; a run has a config.toml, and weights in its checkpoints alone."""
    return (path / CONFIG).is_file() and (path / MODEL).is_file()


def _digest_of(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a header's canonical JSON, without its own "sha256"."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def read_tensors(path: Path, header: Header, name: str = MODEL) -> dict[str, Tensor]:
    """Read all tensors of one file of a checkpoint, on the CPU, after checking its size and hash."""
    file = path / name
    entry = header.files.get(name)
    if not isinstance(entry, dict):
        raise CheckpointError(f"{path / HEADER} lists no {name}. {_remedy(path)}")
    try:
        size = file.stat().st_size  # compared before anything is read: the file may be far longer than it should be
        blob = read_regular(file, size) if size == entry.get("bytes") else b""
    except OSError as error:
        raise _unreadable(file, path, error) from None
    if size != entry.get("bytes") or len(blob) != size:
        raise CheckpointDamaged(f"{file} has {size} bytes; {HEADER} says {entry.get('bytes')}. {_remedy(path)}")
    if hashlib.sha256(blob).hexdigest() != entry.get("sha256"):
        raise CheckpointDamaged(f"{file} does not match its sha256 in {HEADER}: it is damaged. {_remedy(path)}")
    try:
        return load_tensors(blob)
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{file} is not a safetensors file ({error}). {_remedy(path)}") from None


def prune(run_dir: Path, *, keep: int, milestone_every: int) -> list[Path]:
    """Remove checkpoints that are not to be kept; -> those removed.

    Kept are the newest `keep` checkpoints of whole epochs (0: all of them), the milestones, and the newest one of all:
    a checkpoint within an epoch is kept as that only.
    """
    found = checkpoints(run_dir)
    whole = [path for path in found if "-step-" not in path.name]
    doomed = [path for path in found[:-1] if path not in whole]
    if keep:
        doomed += [
            p for p in whole[:-keep] if not (milestone_every and int(p.name.split("-")[1]) % milestone_every == 0)
        ]
    for path in doomed:
        # Renamed first: a removal that is cut short must not leave a folder that looks like a checkpoint.
        hidden = path.with_name(f".removing-{path.name}")
        path.rename(hidden)
        if hidden.is_symlink():
            hidden.unlink()  # its target belongs to someone else
        else:
            shutil.rmtree(hidden)
    return doomed


def clean_leftovers(run_dir: Path) -> None:
    """Remove files that a killed run left half written or half removed. Only for the run that owns the directory."""
    folder = _folder(run_dir)
    if folder.is_dir():
        for path in folder.iterdir():
            if _LEFTOVER.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
                logger.info("removing %s, left by a run that was stopped", path)
                shutil.rmtree(path)


def set_damaged_aside(run_dir: Path) -> None:
    """Make the newest intact checkpoint the latest: damaged ones after it are renamed to damaged-NAME, with a warning.

    Only for the run that owns the directory. The steps after that checkpoint, or all if none is intact, are repeated
    with the same result.

    Raises CheckpointError for a checkpoint of another version, or one that cannot be read for other reasons.
    """
    folder = _folder(run_dir)
    found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)] if folder.is_dir() else []
    damaged: list[tuple[Path, CheckpointDamaged]] = []
    for path in sorted(found, key=_age, reverse=True):
        try:
            header = read_header(path)
            for name in header.files:
                read_tensors(path, header, name)
            break
        except CheckpointDamaged as error:
            damaged.append((path, error))
    before = (
        "the checkpoint before it" if len(damaged) < len(found) else ("the beginning, because no checkpoint is intact")
    )
    for path, fault in damaged:
        aside = path.with_name(f"damaged-{path.name}-{secrets.token_hex(2)}")
        logger.warning("%s\n  It is kept as %s; the run resumes from %s.", fault, aside.name, before)
        path.rename(aside)
    if damaged:
        sync_directory(folder)


def _age(path: Path) -> tuple[int, int]:
    match = _NAME.fullmatch(path.name)
    assert match is not None
    return int(match[1]), int(match[2] or 0)


def flatten_optimizer(optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str]) -> dict[str, Tensor]:
    """Return an optimiser's state as named tensors, `<what>/<parameter>`.

    names  parameter -> its name.
    """
    flat = {}
    for parameter, state in optimizer.state.items():
        for what, value in state.items():
            flat[f"{what}/{names[parameter]}"] = torch.as_tensor(value)
    return flat


def restore_training(
    path: Path,
    header: Header,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler | None,
) -> None:
    """Load a checkpoint's weights, averages of the optimiser and loss scale, to train on from it.

    Raises CheckpointError for damaged files and averages that do not fit.
    """
    model.load_state_dict(read_tensors(path, header, MODEL))
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    restore_optimizer(optimizer, names, read_tensors(path, header, OPTIMIZER), path)
    if scaler is not None and header.loss_scale is not None:
        scaler.load_state_dict(header.loss_scale)


def restore_optimizer(
    optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str], flat: Mapping[str, Tensor], where: Path
) -> None:
    """Load the result of flatten_optimizer into an optimiser, on the parameters' devices.

    Raises CheckpointError for what does not fit.
    """
    by_name = {name: parameter for parameter, name in names.items()}
    for key, value in flat.items():
        what, _, name = key.partition("/")
        parameter = by_name.get(name)
        if parameter is None:
            raise CheckpointError(f"{where / OPTIMIZER}: {key} matches no parameter of this model. {_remedy(where)}")
        if value.ndim and value.shape != parameter.shape:
            raise CheckpointError(
                f"{where / OPTIMIZER}: {key} has shape {list(value.shape)}; expected {list(parameter.shape)}. "
                f"{_remedy(where)}"
            )
        optimizer.state[parameter][what] = value.to(parameter.device)


def _folder(run_dir: str | Path) -> Path:
    return Path(run_dir) / "checkpoints"


def _stored(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return own, contiguous CPU copies: safetensors refuses tensors that share memory."""
    return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()}


def _unreadable(file: Path, path: Path, error: OSError) -> CheckpointError:
    """Convert a read error: absent files and dangling links are damage; a failing disk or missing permission is not."""
    kind = (
        CheckpointDamaged
        if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP}
        else CheckpointError
    )
    return kind(f"{file} cannot be read: {error.strerror}. {_remedy(path)}")


def _remedy(path: Path) -> str:
    return f"Remove {path} to resume from the checkpoint before it."
