"""Load models from checkpoints, and check whether a run can resume from one."""

import json
import platform
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import asdict, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

from trainer.checkpoints.files import Header, find_checkpoint, read_header, read_tensors
from trainer.config import AlignmentConfig
from trainer.errors import CheckpointError
from trainer.models.build import new_student
from trainer.models.config import DEFAULT_ARCHITECTURE, MaskingConfig, settings_class
from trainer.models.heads.build import new_classifier, new_segmenter
from trainer.models.heads.config import CLASSIFIERS, SEGMENTATIONS
from trainer.models.heads.fine_tuned import PointSegmenter, ShapeClassifier
from trainer.models.student import Student

__all__ = [
    "LATER",
    "changed_settings",
    "load_encoder",
    "load_fine_tuned",
    "load_model",
    "refuse_other_run",
    "resume_problems",
    "section_from_json",
    "sections_of",
    "software_versions",
]

Section = TypeVar("Section")

LATER = {
    ("model", "architecture"): DEFAULT_ARCHITECTURE,
    ("masking", "per_shape"): MaskingConfig().per_shape,
    ("alignment", "contrast"): AlignmentConfig().contrast,
}
"""(section, setting) that came after the first checkpoints -> its default."""

# Settings that do not change the course of training: to the bit, except those marked, which change rounding.
_FREE = {
    "trainer.epochs",
    "trainer.cache",  # which records it holds is compared by its recipe, and those of a selection by their ids
    "trainer.stale_cache",
    "trainer.checkpoint_every",
    "trainer.checkpoint_steps",
    "trainer.damaged",  # no effect while the cache is intact
    "trainer.keep_checkpoints",
    "trainer.milestone_every",
    "trainer.tensorboard",
    "trainer.readers",
    "trainer.prefetch",
    "trainer.device",  # rounding
    "trainer.compile",  # rounding
    "trainer.deterministic",  # rounding
    "model.layout",  # rounding
}


def load_model(path: str | Path) -> tuple[Student, Header]:
    """Load the model of a checkpoint, or of a run directory's newest checkpoint: on the CPU, in evaluation mode.

    Raises CheckpointError for what is missing, damaged, of another kind, or of settings unknown to this version.
    """
    path = find_checkpoint(path)
    header = read_header(path)
    if header.kind != "pretraining":
        raise CheckpointError(
            f"{path} is of kind {header.kind}; expected a pre-training model. Load it with "
            "trainer.checkpoints.models.load_fine_tuned, or give a pre-training checkpoint."
        )
    try:
        model = section_from_json(settings_class(header.config["model"]), header.config["model"])
        masking = section_from_json(MaskingConfig, header.config["masking"])
        alignment = section_from_json(AlignmentConfig, header.config.get("alignment", {}))  # runs before it had none
        network = new_student(model, masking, header.teacher, seed=0, whole=alignment.weight > 0)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: no model of this version has its settings: {error}") from None
    try:
        network.load_state_dict(read_tensors(path, header))
    except RuntimeError as error:
        raise CheckpointError(f"{path}: its weights do not fit its settings: {error}") from None
    return network.eval(), header


def load_fine_tuned(path: str | Path) -> tuple[ShapeClassifier | PointSegmenter, Header]:
    """Load the classifier or part segmenter of a checkpoint, fine-tuned here or imported: on the CPU, to evaluate.

    Raises CheckpointError as load_model does.
    """
    path = find_checkpoint(path)
    header = read_header(path)
    network: ShapeClassifier | PointSegmenter
    if header.kind == "pretraining":
        raise CheckpointError(
            f"{path} is of kind pretraining; expected a fine-tuned model. "
            "Load it with trainer.checkpoints.models.load_model."
        )
    try:
        model = section_from_json(settings_class(header.config["model"]), header.config["model"])
        if header.kind == "classifier":
            head: Any = section_from_json(CLASSIFIERS[model.architecture], header.config["classifier"])
            network = new_classifier(model, head)
        else:
            head = section_from_json(SEGMENTATIONS[model.architecture], header.config["segmentation"])
            network = new_segmenter(model, head)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: no model of this version has its settings: {error}") from None
    try:
        network.load_state_dict(read_tensors(path, header))
    except RuntimeError as error:
        raise CheckpointError(f"{path}: its weights do not fit its settings: {error}") from None
    return network.eval(), header


def load_encoder(path: str | Path) -> Student:
    """Load the model of a checkpoint or run directory, for `encode(points [B, N, 3] float32) -> [B, D]`."""
    return load_model(path)[0]


def sections_of(**sections: Any) -> dict[str, dict[str, Any]]:
    """Section name -> settings as JSON types, as a checkpoint holds them.

    Settings of LATER are left out at their default: a checkpoint without one has it, and older versions read such a
    checkpoint.
    """
    plain: dict[str, dict[str, Any]] = json.loads(json.dumps({name: asdict(part) for name, part in sections.items()}))
    for (section, key), default in LATER.items():
        if plain.get(section, {}).get(key) == default:
            del plain[section][key]
    return plain


def section_from_json(cls: type[Section], settings: Mapping[str, Any]) -> Section:
    """Create a section's dataclass from JSON types; settings that are not given take their defaults.

    Raises ValueError naming settings that this version does not know.
    """
    known = {field.name for field in fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(settings) - known)
    if unknown:
        raise ValueError(f"unknown settings {', '.join(unknown)} of {cls.__name__}; they belong to another version")
    return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()})


def resume_problems(
    header: Header, sections: Mapping[str, Mapping[str, Any]], cache: Mapping[str, Any], teacher: Mapping[str, Any]
) -> list[str]:
    """List the reasons why these settings cannot resume from a checkpoint, one line each.

    The evaluation may change at will, and so may settings that do not affect the course of training, `_FREE`.
    """
    off = sections_of(alignment=AlignmentConfig())  # as in runs before there was such a section
    now = off | {name: section for name, section in sections.items() if name != "evaluation"}
    then = off | {name: section for name, section in header.config.items() if name != "evaluation"}
    lines = changed_settings(
        {**then, "cache": header.cache, "teacher": header.teacher},
        {**now, "cache": cache, "teacher": teacher},
        free=_FREE,
    )
    epochs = sections["trainer"]["epochs"]
    if header.under_way and epochs == header.epoch:
        lines.append(f"trainer.epochs is {epochs}, but epoch {epochs + 1} has already begun")
    if epochs < header.epoch:
        lines.append(f"trainer.epochs is {epochs}, but {header.epoch} epochs are already done")
    return lines


def changed_settings(
    old: Mapping[str, Mapping[str, Any]], new: Mapping[str, Mapping[str, Any]], *, free: Set[str]
) -> list[str]:
    """List the settings that differ between two sets of sections, one line each; `free` ones may."""
    return [
        f"{key} was {_shown(then)}, is now {_shown(now)}"
        for key, then, now in _differences(old, new)
        if key not in free
    ]


def refuse_other_run(path: Path, problems: Sequence[str]) -> None:
    """Raise CheckpointError where there are reasons why a run cannot resume from the checkpoint `path`."""
    if problems:
        lines = "\n  ".join(problems)
        raise CheckpointError(
            f"{path} belongs to a run with other settings:\n"
            f"  {lines}\n"
            "Use the settings that the run was started with, or another run directory."
        )


def software_versions() -> dict[str, str]:
    """Return the versions of this package, torch, numpy and python."""
    found = {"python": platform.python_version()}
    for package in ("i2p-pretrain", "torch", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a source tree that is not installed
            found[package] = "not installed"
    return found


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for section in sorted({*old, *new}):
        here, there = old.get(section, {}), new.get(section, {})
        for key in sorted({*here, *there}):
            if here.get(key, _ABSENT) != there.get(key, _ABSENT):
                yield f"{section}.{key}", here.get(key, _ABSENT), there.get(key, _ABSENT)


_ABSENT = object()


def _shown(value: Any) -> str:
    return "absent" if value is _ABSENT else repr(value)
