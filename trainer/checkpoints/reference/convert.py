"""Conversion of the reference implementation's checkpoints to ours and back (docs/checkpoints.md).

Weights keep every bit. A file is checked completely before anything is written, and the result appears atomically.
"""

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trainer.checkpoints.files import (
    MODEL,
    OPTIMIZER,
    Header,
    find_checkpoint,
    read_header,
    read_tensors,
    write_checkpoint_at,
)
from trainer.checkpoints.models import section_from_json, sections_of, software_versions
from trainer.checkpoints.reference.optimiser import default_groups, optimizer_from_reference, optimizer_to_reference
from trainer.checkpoints.reference.pth_file import (
    PREFIX,
    TEACHER,
    ReferenceFile,
    first_few,
    read_reference,
    read_teacher,
    write_reference,
)
from trainer.checkpoints.reference.recognise import (
    SECTIONS,
    Recognised,
    build_empty,
    complete_sections,
    misfits,
    recognise,
)
from trainer.errors import CheckpointError
from trainer.models.config import REFERENCE_QUIRKS

__all__ = ["Converted", "export_reference", "import_reference"]

VIEWS = 3
HEADS = ("align_head.", "further_heads.")


class Converted(NamedTuple):
    """Result of a conversion.

    path    the checkpoint's directory, or the `.pth` file
    header  of the checkpoint
    notes   what was assumed, left out or is otherwise worth knowing, a line each
    """

    path: Path
    header: Header
    notes: tuple[str, ...]


def import_reference(
    file: str | Path, out: str | Path, *, settings: Mapping[str, Mapping[str, Any]] | None = None
) -> Converted:
    """Convert one of the reference's checkpoints to one of ours.

    file      a pre-training, classification or part segmentation checkpoint of I2P-MAE or Point-M2AE, or the bare state
              dict of one. Names may begin with `module.`; the frozen teacher, `clip_model.`, is left out.
    out       the directory to write; must not exist.
    settings  section name -> settings that weights do not show: groups, neighbours, heads, radii. What is neither
              stated nor shown takes the paper's value, and is listed in the notes.

    Raises CheckpointError, and writes nothing, where the file cannot be read safely, is not the reference's, or does
    not fit: missing and unexpected names, other shapes and types are all named.
    """
    out = Path(out)
    if out.exists():
        raise CheckpointError(f"{out} already exists; nothing was written. Remove it, or choose another name.")
    read = read_reference(file)
    found = recognise(read.entries, str(file))
    sections, assumed = complete_sections(found, settings or {}, str(file))
    faults = misfits(found.entries, build_empty(found.kind, sections, found.teacher).state_dict())
    if faults:
        listed = "\n  ".join(faults)
        raise CheckpointError(
            f"{file} does not fit a {found.kind} model of the sizes that its weights imply; nothing was written.\n"
            f"  {listed}\n"
            "Expected every weight of one model. Download the file again, or save it complete."
        )
    state, groups, reason = optimizer_from_reference(read.optimizer, found.entries, read.teacher)
    header = Header(
        epoch=_epochs_done(read.numbers),
        step=0,
        config=sections_of(**sections),
        cache={},
        teacher=found.teacher,
        metrics=_metrics(read.numbers),
        versions=software_versions(),
        kind=found.kind,
        origin=_origin(read, found, assumed, groups),
    )
    path = write_checkpoint_at(out, header, found.entries, state or None)
    notes = [f"assumed, because weights do not show it: {_shown(header.config, name)}" for name in assumed]
    if read.teacher:
        notes.append(f"left out: the frozen teacher, {len(read.teacher)} tensors under {TEACHER}")
    if read.optimizer is not None and reason:
        notes.append(f"left out: the optimiser's state, because {reason}")
    notes += [f"left out: {name}, which is not a plain number, string or list" for name in read.skipped]
    return Converted(path, read_header(path), tuple(notes))


def export_reference(
    path: str | Path, out: str | Path, *, teacher: str | Path | None = None, prefix: bool | None = None
) -> Converted:
    """Convert one of our checkpoints to the reference's layout: a dict of tensors and numbers, as torch.save writes.

    path     a checkpoint, imported or of our own training, or a run directory.
    out      the `.pth` file to write; must not exist.
    teacher  the CLIP to put under `clip_model.`: a state dict in OpenAI's layout or one of the reference's pre-training
             checkpoints. The reference needs it to resume pre-training; its fine-tuning does not.
    prefix   whether names begin with `module.`; None: as in the imported file, and where there was none, as the
             reference writes them: with it, except for part segmentation.

    Raises CheckpointError, and writes nothing, for a checkpoint that is damaged or that the reference has no model for.
    """
    path = find_checkpoint(path)
    header = read_header(path)
    origin = header.origin or {}
    entries = _ordered(path, header)
    renamed = dict(origin.get("renamed", {}))
    if header.origin is None and header.config["model"]["targets"] == "3d":
        renamed = {name: name.replace("rec_head_3d", "rec_head") for name in entries if name.startswith("rec_head_3d.")}
    frozen = {} if teacher is None else _teacher(teacher, header)
    segmentation = header.kind == "segmentation"
    weights = origin.get("weights", "model_state_dict" if segmentation else "base_model")
    before = (PREFIX if prefix else "") if prefix is not None else origin.get("prefix", "" if segmentation else PREFIX)
    state = OrderedDict((before + renamed.get(name, name), value) for name, value in entries.items())
    state.update((before + TEACHER + name, value) for name, value in frozen.items())
    notes = _differences(header)
    if more := _more_heads(header):
        notes.append(f"without {more}, which the reference does not have and cannot train further")
    if header.config["model"]["targets"] == "both" and header.kind == "pretraining" and not frozen:
        notes.append(f"without the teacher ({TEACHER}): enough to fine-tune from, but not to resume pre-training")
    if not weights:
        write_reference(out, state)
        return Converted(Path(out), header, tuple(notes))
    numbers = dict(origin.get("numbers", {}))
    if header.origin is None:
        numbers = {"epoch": header.epoch - 1, "metrics": {"acc": 0.0}, "best_metrics": {"acc": 0.0}}
        notes.append(
            "metrics and best_metrics have an accuracy of 0, a placeholder that the reference expects; it was not "
            "measured"
        )
    content: dict[str, Any] = {weights: state, **numbers}
    optimizer = _optimizer(path, header, entries, frozen)
    if optimizer is not None:
        content["optimizer"] = optimizer
    elif OPTIMIZER in header.files or origin.get("optimizer_groups"):
        notes.append("without the optimiser's state, whose order includes the teacher's parameters")
    write_reference(out, content)
    return Converted(Path(out), header, tuple(notes))


def _origin(read: ReferenceFile, found: Recognised, assumed: list[str], groups: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "file": read.name,
        "sha256": read.sha256,
        "weights": read.weights,
        "prefix": read.prefix,
        "renamed": found.renamed,
        "teacher_tensors": len(read.teacher),
        "optimizer_groups": groups,
        "numbers": read.numbers,
        "assumed": assumed,
    }


def _epochs_done(numbers: Mapping[str, Any]) -> int:
    # the reference writes the number of the epoch just done, counted from 0
    epoch = numbers.get("epoch")
    return epoch + 1 if isinstance(epoch, int) and not isinstance(epoch, bool) and epoch >= 0 else 0


def _metrics(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Return the last epoch's metrics; a part segmentation checkpoint stores them side by side with the epoch."""
    metrics = numbers.get("metrics", {name: value for name, value in numbers.items() if name != "epoch"})
    return metrics if isinstance(metrics, dict) else {}


def _shown(config: Mapping[str, Mapping[str, Any]], name: str) -> str:
    section, key = name.split(".")
    return f"{name} = {config[section][key]}"


def _ordered(path: Path, header: Header) -> dict[str, Tensor]:
    """Return the weights in the order in which the reference registers them."""
    problems = []
    try:
        sections = {
            name: section_from_json(cls, header.config[name])  # type: ignore[var-annotated]
            for name, cls in SECTIONS.get(header.kind, {}).items()
        }
        expected = build_empty(header.kind, sections, header.teacher).state_dict()
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: no model of this version has its settings: {error}") from None
    model = sections["model"]
    if header.kind == "pretraining" and model.targets == "2d":
        problems.append("model.targets = '2d': the reference always has a 3D head")
    if header.kind == "pretraining" and model.targets == "both" and header.teacher["views"] != VIEWS:
        problems.append(f"a teacher of {header.teacher['views']} views: the reference has {VIEWS}")
    if header.kind == "classifier" and model.merge_input == "normed":
        problems.append("model.merge_input = 'normed': the reference's classifier has no norms below the top level")
    if problems:
        raise CheckpointError(
            f"{path} has no counterpart in the reference; nothing was written. {'; '.join(problems)}."
        )
    tensors = read_tensors(path, header, MODEL)
    if _more_heads(header):
        tensors = {name: value for name, value in tensors.items() if not name.startswith(HEADS)}
    # Slim ones are float16 on the disk, and float32 again wherever they are loaded.
    tensors = {name: value.float() if value.dtype == torch.float16 else value for name, value in tensors.items()}
    faults = misfits(tensors, expected)
    if faults:
        raise CheckpointError(
            f"{path}: its weights do not fit its settings: {'; '.join(faults)}. The checkpoint was altered."
        )
    return {name: tensors[name] for name in expected}


def _more_heads(header: Header) -> str:
    """Name the heads of the model that the reference lacks; "" for none."""
    found = ["the head of the global loss"] if header.config.get("alignment", {}).get("weight") else []
    return " and ".join(found + (["the heads for further teachers"] if header.teacher.get("further") else []))


def _teacher(file: str | Path, header: Header) -> dict[str, Tensor]:
    if header.kind != "pretraining" or not header.teacher["channels"]:
        raise CheckpointError(
            f"a teacher ({file}) for a {header.kind} model without a 2D head; the reference has none in such files. "
            "Leave it out."
        )
    frozen = read_teacher(file)
    channels = frozen["visual.proj"].shape[-1]
    if channels != header.teacher["channels"]:
        raise CheckpointError(
            f"{file} is a teacher of {channels} channels; the model was trained with {header.teacher['channels']}. "
            "Give the CLIP that it was trained with."
        )
    return frozen


def _differences(header: Header) -> list[str]:
    """List settings for which the reference, whose code has no such switch, will treat these weights differently."""
    model = header.config["model"]
    other = [f"model.{name} = {model[name]!r}" for name, value in REFERENCE_QUIRKS.items() if model[name] != value]
    return [f"the reference's code has other values of these settings: {first_few(other)}"] if other else []


def _optimizer(
    path: Path, header: Header, entries: Mapping[str, Tensor], frozen: Mapping[str, Tensor]
) -> dict[str, Any] | None:
    """Return the optimiser's state by position, or None if the teacher is absent.

    Without the teacher's parameters the positions would differ.
    """
    flat = read_tensors(path, header, OPTIMIZER) if OPTIMIZER in header.files else {}
    flat = {key: value for key, value in flat.items() if not key.partition("/")[2].startswith(HEADS)}
    if header.origin is not None:
        groups = header.origin.get("optimizer_groups")
        if not groups or len(frozen) != header.origin.get("teacher_tensors"):
            return None
        # JSON has no tuples, and torch writes betas as one
        groups = [{**group, "betas": tuple(group["betas"])} if "betas" in group else group for group in groups]
        return optimizer_to_reference(flat, groups, entries, frozen)
    trainer = header.config.get("trainer", {})
    if not flat or (header.config["model"]["targets"] == "both" and not frozen):
        return None
    top = trainer["learning_rate"]
    rate = header.metrics.get("learning_rate", top)
    groups = default_groups(
        rate=rate,
        initial_rate=top,
        decay=trainer["weight_decay"],
        betas=trainer["betas"],
        epsilon=trainer["epsilon"],
    )
    return optimizer_to_reference(flat, groups, entries, frozen)
