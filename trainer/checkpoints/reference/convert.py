"""Conversion of the reference implementation's checkpoints to ours and back (docs/checkpoints.md).

Weights keep every bit. A file is checked completely before anything is written, and the result appears atomically.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import replace
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
from trainer.checkpoints.reference.family import recognise_family
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
    Recognised,
    build_empty,
    complete_sections,
    misfits,
    recognise,
    sections_of_kind,
)
from trainer.errors import CheckpointError
from trainer.models.build import new_student
from trainer.models.config import DEFAULT_ARCHITECTURE, REFERENCE_QUIRKS, PlainConfig

__all__ = ["Converted", "export_reference", "import_reference"]

VIEWS = 3
HEADS = ("align_head.", "further_heads.")
HEAD_2D = "rec_head_2d."
PLAIN_QUIRKS = {"fps_skip_near_origin": True}


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
    file: str | Path,
    out: str | Path,
    *,
    settings: Mapping[str, Mapping[str, Any]] | Callable[[str], Mapping[str, Mapping[str, Any]]] | None = None,
) -> Converted:
    """Convert one of the reference's checkpoints to one of ours.

    file      a pre-training, classification or part segmentation checkpoint of I2P-MAE, Point-M2AE, Point-MAE or its
              relatives (trainer.checkpoints.reference.family), or the bare state dict of one. Names may begin with
              `module.`; frozen teachers are left out.
    out       the directory to write; must not exist.
    settings  section name -> settings that weights do not show: groups, neighbours, heads, radii; or a function of the
              architecture that gives them. What is neither stated nor shown takes the paper's value, and is listed in
              the notes. Weights that a relative has no counterpart of are drawn from seed 0, and listed too.

    Raises CheckpointError, and writes nothing, where the file cannot be read safely, is not the reference's, or does
    not fit: missing and unexpected names, other shapes and types are all named.
    """
    out = Path(out)
    if out.exists():
        raise CheckpointError(f"{out} already exists; nothing was written. Remove it, or choose another name.")
    read = read_reference(file)
    found = recognise_family(read.entries, str(file)) or recognise(read.entries, str(file))
    stated = settings(found.architecture) if callable(settings) else settings
    sections, assumed = complete_sections(found, stated or {}, str(file))
    expected = build_empty(found.kind, sections, found.teacher).state_dict()
    found, fresh = completed(found, expected, sections)
    faults = misfits(found.entries, expected)
    if faults:
        listed = "\n  ".join(faults)
        raise CheckpointError(
            f"{file} does not fit a {found.kind} model of the sizes that its weights imply; nothing was written.\n"
            f"  {listed}\n"
            "Expected every weight of one model. Download the file again, or save it complete."
        )
    state, groups, reason = _optimizer_in(read, found, fresh)
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
    notes = _family_notes(found, fresh)
    notes += [f"assumed, because weights do not show it: {_shown(header.config, name)}" for name in assumed]
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
    plain = _is_plain(header)
    renamed = {} if plain else dict(origin.get("renamed", {}))
    if header.origin is None and not plain and header.config["model"]["targets"] == "3d":
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
    both = header.kind == "pretraining" and header.config["model"]["targets"] == "both"
    if both and not plain and not frozen:
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


def completed(
    found: Recognised, expected: Mapping[str, Tensor], sections: Mapping[str, Any]
) -> tuple[Recognised, tuple[str, ...]]:
    """What was recognised, with what the method has no counterpart of; and the names of weights that are new.

    New weights are drawn from seed 0. Counts of batches that a file does not have are 0, as in the official loaders.
    """
    if found.architecture == DEFAULT_ARCHITECTURE:
        return found, ()
    entries = dict(found.entries)
    fresh = [
        name
        for part in found.may_be_new
        for name in expected
        if name.startswith(part) and not any(other.startswith(part) for other in found.entries)
    ]
    if fresh:
        drawn = new_student(sections["model"], sections["masking"], found.teacher, seed=0).state_dict()
        entries |= {name: drawn[name] for name in fresh}
    counts = {name: torch.zeros((), dtype=torch.int64) for name in expected if name.endswith("num_batches_tracked")}
    entries = {**counts, **entries}
    ordered = {name: entries[name] for name in expected if name in entries}
    return replace(found, entries={**ordered, **entries}), tuple(fresh)


def _optimizer_in(
    read: ReferenceFile, found: Recognised, fresh: tuple[str, ...]
) -> tuple[dict[str, Tensor], list[dict[str, Any]], str]:
    """The optimiser's state by name: it goes by position, so only where the file's model is the whole of ours."""
    if read.optimizer is not None and (fresh or found.dropped or (found.member and found.renamed)):
        return {}, [], f"it goes by position in {found.member}'s own model"
    return optimizer_from_reference(read.optimizer, found.entries, read.teacher)


def _family_notes(found: Recognised, fresh: tuple[str, ...]) -> list[str]:
    if not found.member:
        return []
    kind = "pre-training" if found.kind == "pretraining" else found.kind
    notes = [f"recognised by its keys: {found.member}'s {kind}; {len(found.entries) - len(fresh)} tensors taken"]
    notes += [f"left out: {what}, {len(names)} tensors ({first_few(names)})" for what, names in found.dropped.items()]
    if fresh:
        notes.append(f"left new, drawn from seed 0: {len(fresh)} tensors ({first_few(fresh)})")
    return notes


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
        **({"member": found.member} if found.member else {}),
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
    architecture = header.config["model"].get("architecture", DEFAULT_ARCHITECTURE)
    plain = _is_plain(header)
    try:
        sections = {
            name: section_from_json(cls, header.config[name])  # type: ignore[var-annotated]
            for name, cls in sections_of_kind(architecture, header.kind).items()
        }
        if plain and sections["model"].targets == "both":
            sections["model"] = replace(sections["model"], targets="3d")
        expected = build_empty(header.kind, sections, header.teacher).state_dict()
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: no model of this version has its settings: {error}") from None
    model = sections["model"]
    if header.kind == "pretraining" and model.targets == "2d":
        problems.append("model.targets = '2d': the reference always has a 3D head")
    if plain:
        problems += _beyond_point_mae(model)
    if header.kind == "pretraining" and model.targets == "both" and header.teacher["views"] != VIEWS:
        problems.append(f"a teacher of {header.teacher['views']} views: the reference has {VIEWS}")
    if header.kind == "classifier" and not plain and model.merge_input == "normed":
        problems.append("model.merge_input = 'normed': the reference's classifier has no norms below the top level")
    if header.kind == "classifier" and sections["classifier"].pooling == "levels":
        problems.append("classifier.pooling = 'levels': the reference's head sees another feature")
    if problems:
        raise CheckpointError(
            f"{path} has no counterpart in the reference; nothing was written. {'; '.join(problems)}."
        )
    tensors = read_tensors(path, header, MODEL)
    tensors = {name: value for name, value in tensors.items() if not name.startswith(_heads_of_ours(header))}
    # Slim ones are float16 on the disk, and float32 again wherever they are loaded.
    tensors = {name: value.float() if value.dtype == torch.float16 else value for name, value in tensors.items()}
    faults = misfits(tensors, expected)
    if faults:
        raise CheckpointError(
            f"{path}: its weights do not fit its settings: {'; '.join(faults)}. The checkpoint was altered."
        )
    return {name: tensors[name] for name in expected}


def _beyond_point_mae(model: PlainConfig) -> list[str]:
    """What of a plain encoder Point-MAE's code cannot run."""
    other = PlainConfig()
    names = ("embed_width", "embed_first", "position", "streams", "adapters")
    unlike = [name for name in names if getattr(model, name) != getattr(other, name)]
    lines = [f"model.{name} = {getattr(model, name)!r}" for name in unlike]
    if model.front == "three":
        lines.append("model.front = 'three'")
    return [f"{', '.join(lines)}: Point-MAE's encoder is a plain one"] if lines else []


def _heads_of_ours(header: Header) -> tuple[str, ...]:
    """How the names of heads begin that the layout to write does not have."""
    return (*(HEADS if _more_heads(header) else ()), *((HEAD_2D,) if _is_plain(header) else ()))


def _is_plain(header: Header) -> bool:
    return bool(header.config["model"].get("architecture", DEFAULT_ARCHITECTURE) == "plain")


def _more_heads(header: Header) -> str:
    """Name the heads of the model that the reference lacks; "" for none."""
    found = ["the head of the global loss"] if header.config.get("alignment", {}).get("weight") else []
    found += ["the heads for further teachers"] if header.teacher.get("further") else []
    if _is_plain(header) and header.kind == "pretraining" and header.config["model"]["targets"] == "both":
        found.append("the head of the 2D loss")
    return " and ".join(found)


def _teacher(file: str | Path, header: Header) -> dict[str, Tensor]:
    if header.kind != "pretraining" or not header.teacher["channels"] or _is_plain(header):
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
    quirks = PLAIN_QUIRKS if _is_plain(header) else REFERENCE_QUIRKS
    other = [f"model.{name} = {model[name]!r}" for name, value in quirks.items() if model[name] != value]
    return [f"the reference's code has other values of these settings: {first_few(other)}"] if other else []


def _optimizer(
    path: Path, header: Header, entries: Mapping[str, Tensor], frozen: Mapping[str, Tensor]
) -> dict[str, Any] | None:
    """Return the optimiser's state by position, or None if the teacher is absent.

    Without the teacher's parameters the positions would differ.
    """
    flat = read_tensors(path, header, OPTIMIZER) if OPTIMIZER in header.files else {}
    ours = _heads_of_ours(header)
    flat = {key: value for key, value in flat.items() if not key.partition("/")[2].startswith(ours)}
    if header.origin is not None:
        groups = header.origin.get("optimizer_groups")
        if not groups or len(frozen) != header.origin.get("teacher_tensors"):
            return None
        # JSON has no tuples, and torch writes betas as one
        groups = [{**group, "betas": tuple(group["betas"])} if "betas" in group else group for group in groups]
        return optimizer_to_reference(flat, groups, entries, frozen)
    trainer = header.config.get("trainer", {})
    if not flat or (header.config["model"]["targets"] == "both" and not frozen and not _is_plain(header)):
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
