"""Fine-tuning as the command line asks for it: settings from a recipe, a start, several seeds, one result."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.experiment.toml import ConfigError, load_sections, read_config, stated_settings

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.models.config import StudentConfig

__all__ = [
    "CLASSES",
    "PARTS",
    "SCORED",
    "Kind",
    "check_starts",
    "load_recipe",
    "recipe_names",
    "reference_settings",
    "run_seeds",
    "start_of",
]


@dataclass(frozen=True)
class Kind:
    """What is fine-tuned.

    section  of the head's settings;  folder  of its recipes, below cli/recipes
    reference  settings that make a run follow the field's habits
    """

    section: str
    folder: str
    reference: Mapping[str, Any]


CLASSES = Kind("classifier", "", {"select": "test", "sharing": "batch", "head": "new"})
PARTS = Kind("segmentation", "parts", {"select": "test", "sampling": "replacement", "updates": 2, "rivals": "all"})

SCORED = {
    "last": "the last weights",
    "validation": "the best on a held-out part of the training split",
    "test": "the best ON THE TEST SPLIT, as the field does: it flatters",
}
"""finetune.select -> which weights were scored, in words."""


def recipe_names(kind: Kind = CLASSES) -> list[str]:
    """The recipes of a kind that travel inside the package, sorted."""
    return sorted(path.name.removesuffix(".toml") for path in _recipes(kind).iterdir() if path.name.endswith(".toml"))


def reference_settings(kind: Kind) -> list[str]:
    """The field's habits as overrides."""
    return [f"finetune.{name}={json.dumps(value)}" for name, value in kind.reference.items()]


def load_recipe(config: str, overrides: Sequence[str], kind: Kind = CLASSES) -> tuple[dict[str, Any], bool]:
    """The sections model, finetune and the head's, of a recipe's name or a TOML file; and whether [model] states sizes.

    A recipe is for one architecture, which [model] names, because the head's section is the architecture's own.

    Raises ConfigError listing all that is wrong.
    """
    from trainer.downstream.finetuning.config import FinetuneConfig, SegmentConfig
    from trainer.models.config import settings_class
    from trainer.models.heads.config import CLASSIFIERS, SEGMENTATIONS

    path = Path(config)
    if path.suffix == ".toml" or path.is_file():
        if not path.is_file():
            raise ConfigError(config, ["no such file"])
        text = read_config(path)
    elif config in recipe_names(kind):
        text = (_recipes(kind) / f"{config}.toml").read_text(encoding="utf-8")
    else:
        raise ConfigError(config, [f"neither a recipe nor a .toml file; recipes: {', '.join(recipe_names(kind))}"])
    known, tuning = {"classifier": (CLASSIFIERS, FinetuneConfig), "segmentation": (SEGMENTATIONS, SegmentConfig)}[
        kind.section
    ]
    model = stated_settings(config, text, overrides, "model")
    try:
        of_model = settings_class(model)
        head = known[of_model().architecture]
    except ValueError as error:
        raise ConfigError(config, [f"model.{error}"]) from None
    except KeyError as error:
        raise ConfigError(config, [f"no {kind.section} is built on the {error.args[0]} student"]) from None
    found = load_sections(config, text, overrides, {"model": of_model, kind.section: head, "finetune": tuning})
    return found, bool(set(model) - {"architecture"})


def check_starts(start: str, sizes: str | None) -> None:
    """Refuse what --from and --sizes cannot mean."""
    from cli.actions.encoders import is_checkpoint

    if sizes and start != "none":
        raise click.UsageError("--sizes needs --from none; a checkpoint has its own sizes")
    for option, name in (("--from", start), ("--sizes", sizes)):
        if name not in (None, "none") and not is_checkpoint(name):
            raise click.UsageError(
                f"{option} {name}: no such directory; expected a run, one of its checkpoints, embedded, or none"
            )


def start_of(
    name: str, sizes: str | None, sections: Mapping[str, Any], stated: bool
) -> "tuple[StudentConfig, tuple[str, Mapping[str, Tensor]] | None]":
    """Sizes of the model and the weights that it starts from.

    name   a run or checkpoint, "embedded", or "none".
    sizes  with "none": a run or checkpoint whose sizes are taken; None: those of [model].

    Raises ConfigError for a [model] that a checkpoint's sizes would override or that is of another architecture,
    CheckpointError for a path that is not a checkpoint.
    """
    from trainer.checkpoints.files import MODEL, find_checkpoint, read_header, read_tensors
    from trainer.checkpoints.models import section_from_json
    from trainer.errors import CheckpointError
    from trainer.models.config import DEFAULT_ARCHITECTURE, settings_class

    of = sizes if name == "none" else name
    if of is None:
        return sections["model"], None
    if stated:
        raise ConfigError("the settings", [f"[model] is given, but the sizes are those of {of}; leave one of them out"])
    path = find_checkpoint(of)
    header = read_header(path)
    asked = sections["model"].architecture
    there = header.config.get("model", {}).get("architecture", DEFAULT_ARCHITECTURE)
    if there != asked:
        hint = "; recipes for it begin with plain-" if there == "plain" else ""
        raise ConfigError(
            "the settings", [f"they are for the {asked} student (model.architecture), and {of} is {there}{hint}"]
        )
    try:
        model = section_from_json(settings_class(header.config["model"]), header.config["model"])
        faults = list(model.problems())
    except (KeyError, ValueError) as error:
        faults = [str(error)]
    if faults:
        raise CheckpointError(f"{path}: no model of this version has its settings: {'; '.join(faults)}")
    if name == "none":
        return model, None
    return model, (header.files[MODEL]["sha256"], read_tensors(path, header))


def run_seeds(
    sections: Mapping[str, Any],
    model: "StudentConfig",
    start: "tuple[str, Mapping[str, Tensor]] | None",
    *,
    source: str,
    out: Path,
    seeds: int,
    quiet: bool = False,
) -> dict[str, Any]:
    """Fine-tune with `seeds` seeds from finetune.seed on, each in a folder of its own below `out`.

    quiet  shows no progress.

    ->  what out/metrics.json then holds: scores, mean and sample standard deviation over the seeds. Under torchrun
        every rank has it, and rank 0 writes it. Raises ConfigError listing what is wrong with the settings.
    """
    from cli.show.progress import Progress
    from pipeline.corpora import open_corpus
    from trainer.downstream.finetuning.loop import finetune, read_sets, segment, settings_problems
    from trainer.engine.ranks import joined
    from trainer.engine.run_directory import write_json

    config = sections["finetune"]
    parts = "segmentation" in sections
    head = sections["segmentation" if parts else "classifier"]
    problems = settings_problems(config, head, model, scratch=start is None)
    if problems:
        raise ConfigError("the settings", problems)
    total = sum(len(open_corpus(uri, points=config.stored_points)) for uri in (config.train, config.test))
    reports: list[Any] = []
    with joined(config.device) as ranks:
        quiet = quiet or not ranks.main
        with Progress("reading", total, unit="shapes", quiet=quiet) as progress:
            sets = read_sets(config, progress=progress.add)
        common: dict[str, Any] = {"model": model, "start": start, "source": source}
        for seed in range(config.seed, config.seed + seeds):
            with _Reporter(f"seed {seed}", quiet=quiet) as reporter:
                common |= {"config": replace(config, seed=seed), "on_event": reporter}
                if parts:
                    reports.append(segment(sets, out / f"seed-{seed}", segmentation=head, **common))
                else:
                    reports.append(finetune(sets, out / f"seed-{seed}", classifier=head, **common))
        found = {
            "task": "part segmentation" if parts else "fine-tuning",
            "from": source,
            **(_of_parts(config) if parts else _of_classes(config, head)),
            "select": config.select,
            "augmentation": config.augmentation(),
            "points": config.points,
            "epochs": config.epochs,
            "train": {"uri": config.train, "shapes": len(sets.train), "skipped": len(sets.train.skipped)},
            "test": {"uri": config.test, "shapes": len(sets.test), "skipped": len(sets.test.skipped)},
            "seeds": [config.seed + number for number in range(seeds)],
            **(_part_results(reports) if parts else _class_results(reports)),
            "validation": [report.validation for report in reports],
            "chosen": [report.chosen for report in reports],
            "step": 1 / len(sets.test),
            "checkpoints": [str(report.checkpoint.relative_to(out)) for report in reports],
        }
        if ranks.main:
            write_json(out / "metrics.json", json.loads(json.dumps(found)))
        ranks.wait()
    return found


def _of_classes(config: Any, head: Any) -> dict[str, Any]:
    frozen = config.frozen if config.protocol != "full" else "nothing"
    follows = _follows(config, CLASSES) and frozen != "still"  # the field's batch norms move in frozen encoders, too
    layers = 1 if config.protocol == "linear" else len(head.hidden) + 1
    said = f"{head.pooling}, {layers} layer{'s' if layers > 1 else ''}, {config.head}"
    return {"protocol": config.protocol, "frozen": frozen, "head": said, "reference": follows}


def _of_parts(config: Any) -> dict[str, Any]:
    chosen = {name: getattr(config, name) for name in ("sampling", "updates", "rivals")}
    return {**chosen, "reference": _follows(config, PARTS)}


def _follows(config: Any, kind: Kind) -> bool:
    """Tell whether a run follows the field's habits in all that they are."""
    return all(getattr(config, name) == value for name, value in kind.reference.items())


def _class_results(reports: Sequence[Any]) -> dict[str, Any]:
    scores = [report.accuracy for report in reports]
    mean, spread = _summary(scores)
    return {
        "scores": scores, "class_scores": [report.class_accuracy for report in reports], "mean": mean, "spread": spread
    }  # fmt: skip


def _part_results(reports: Sequence[Any]) -> dict[str, Any]:
    scores = [report.scores for report in reports]
    found: dict[str, Any] = {}
    for name, key in (("scores", "instance"), ("class_scores", "classes"), ("accuracies", "accuracy")):
        found[name] = [getattr(score, key) for score in scores]
    found["mean"], found["spread"] = _summary(found["scores"])
    found["class_mean"], found["class_spread"] = _summary(found["class_scores"])
    found["categories"] = {
        name: dict(zip(("mean", "spread"), _summary([score.categories[name] for score in scores]), strict=True))
        for name in scores[0].categories
    }
    if reports[0].best:
        found["best_of_epochs"] = {name: [report.best[name] for report in reports] for name in reports[0].best}
    return found


def _summary(scores: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation, 0 for one."""
    import numpy as np

    return float(np.mean(scores)), float(np.std(scores, ddof=1)) if len(scores) > 1 else 0.0


class _Reporter:
    """Events of a run as a progress with its rate and ETA."""

    def __init__(self, title: str, *, quiet: bool) -> None:
        from cli.show.progress import Watching

        self._title, self._quiet = title, quiet
        self._made: Any = None
        self._watching = Watching(quiet=quiet)  # of what comes before the first step

    def __enter__(self) -> "_Reporter":
        return self

    def __exit__(self, *_: object) -> None:
        self._watching.__exit__(*sys.exc_info())
        if self._made is not None:
            self._made.__exit__(None, None, None)

    def __call__(self, event: Any) -> None:
        from cli.show.progress import Progress
        from trainer.engine.events import EpochDone, RunStarted, StepDone, Working

        match event:
            case Working():
                self._watching(event.watched)
            case RunStarted():
                total = event.epochs * event.steps_per_epoch
                self._made = Progress(self._title, total, unit="steps", initial=event.step, quiet=self._quiet)
                if event.resumed:
                    self._made.write(f"{self._title}: resuming after epoch {event.epoch} of {event.epochs}")
            case StepDone():
                self._made.update(event.step, loss=f"{next(iter(event.losses.values())):.4f}")
            case EpochDone():
                self._made.write(
                    f"{self._title}  epoch {event.epoch:>3}  loss {next(iter(event.losses.values())):.4f}  "
                    f"lr {event.learning_rate:.2e}  {event.shapes_per_second:.0f} shapes/s"
                )


def _recipes(kind: Kind) -> Any:
    return resources.files("cli") / "recipes" / kind.folder if kind.folder else resources.files("cli") / "recipes"
