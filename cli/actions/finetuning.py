"""Fine-tuning as the command line asks for it: settings from a recipe, a start, several seeds, one result."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.experiment.toml import ConfigError, load_sections, read_config, stated_settings

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.models.config import StudentConfig

__all__ = ["load_recipe", "recipe_names", "run_seeds", "start_of"]


def recipe_names() -> list[str]:
    """The recipes that travel inside the package, sorted."""
    return sorted(path.name.removesuffix(".toml") for path in _recipes().iterdir() if path.name.endswith(".toml"))


def load_recipe(config: str, overrides: Sequence[str]) -> tuple[dict[str, Any], bool]:
    """The sections model, classifier and finetune of a recipe's name or a TOML file; and whether [model] states sizes.

    A recipe is for one architecture, which [model] names, because [classifier] is the architecture's own.

    Raises ConfigError listing all that is wrong.
    """
    from trainer.downstream.finetuning.config import FinetuneConfig
    from trainer.models.config import settings_class
    from trainer.models.heads.config import CLASSIFIERS

    path = Path(config)
    if path.suffix == ".toml" or path.is_file():
        if not path.is_file():
            raise ConfigError(config, ["no such file"])
        text = read_config(path)
    elif config in recipe_names():
        text = (_recipes() / f"{config}.toml").read_text(encoding="utf-8")
    else:
        raise ConfigError(config, [f"neither a recipe nor a .toml file; recipes: {', '.join(recipe_names())}"])
    model = stated_settings(config, text, overrides, "model")
    try:
        of_model = settings_class(model)
        head = CLASSIFIERS[of_model().architecture]
    except ValueError as error:
        raise ConfigError(config, [f"model.{error}"]) from None
    except KeyError as error:
        raise ConfigError(config, [f"no classifier is built on the {error.args[0]} student"]) from None
    found = load_sections(config, text, overrides, {"model": of_model, "classifier": head, "finetune": FinetuneConfig})
    return found, bool(set(model) - {"architecture"})


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
) -> dict[str, Any]:
    """Fine-tune with `seeds` seeds from finetune.seed on, each in a folder of its own below `out`.

    ->  what out/metrics.json then holds: accuracies, mean and sample standard deviation over the seeds.
    """
    import numpy as np

    from cli.show.progress import Progress
    from pipeline.corpora import open_corpus
    from trainer.downstream.finetuning.loop import finetune, read_sets
    from trainer.engine.run_directory import write_json

    config, classifier = sections["finetune"], sections["classifier"]
    problems = [f"classifier.{text}" for text in classifier.conflicts(model)]
    least = classifier.least_points(model)
    if least > config.points:
        problems.append(f"finetune.points = {config.points} is less than the {least} that the encoder needs")
    if problems:
        raise ConfigError("the settings", problems)
    total = sum(len(open_corpus(uri, points=config.stored_points)) for uri in (config.train, config.test))
    with Progress("reading", total, unit="shapes") as progress:
        sets = read_sets(config, progress=progress.add)
    reports = []
    for seed in range(config.seed, config.seed + seeds):
        reporter = _Reporter(f"seed {seed}")
        try:
            reports.append(
                finetune(
                    sets, out / f"seed-{seed}", model=model, classifier=classifier,
                    config=replace(config, seed=seed), start=start, source=source, on_event=reporter,
                )
            )  # fmt: skip
        except ValueError as error:
            raise ConfigError("the settings", str(error).splitlines()[1:] or [str(error)]) from error
        finally:
            reporter.close()
    scores = [report.accuracy for report in reports]
    found = {
        "task": "fine-tuning",
        "from": source,
        "protocol": config.protocol,
        "frozen": config.frozen if config.protocol != "full" else "nothing",
        "select": config.select,
        "augmentation": config.augmentation(),
        "points": config.points,
        "epochs": config.epochs,
        "train": {"uri": config.train, "shapes": len(sets.train), "skipped": len(sets.train.skipped)},
        "test": {"uri": config.test, "shapes": len(sets.test), "skipped": len(sets.test.skipped)},
        "seeds": [config.seed + number for number in range(seeds)],
        "scores": scores,
        "class_scores": [report.class_accuracy for report in reports],
        "validation": [report.validation for report in reports],
        "chosen": [report.chosen for report in reports],
        "mean": float(np.mean(scores)),
        "spread": float(np.std(scores, ddof=1)) if seeds > 1 else 0.0,
        "step": 1 / len(sets.test),
        "checkpoints": [str(report.checkpoint.relative_to(out)) for report in reports],
    }
    write_json(out / "metrics.json", json.loads(json.dumps(found)))
    return found


class _Reporter:
    """Events of a run as a progress with its rate and ETA."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._made: Any = None

    def __call__(self, event: Any) -> None:
        from cli.show.progress import Progress
        from trainer.engine.events import EpochDone, RunStarted, StepDone

        match event:
            case RunStarted():
                total = event.epochs * event.steps_per_epoch
                self._made = Progress(self._title, total, unit="steps", initial=event.step)
                if event.resumed:
                    self._made.write(f"{self._title}: resuming after epoch {event.epoch} of {event.epochs}")
            case StepDone():
                self._made.update(event.step, loss=f"{event.losses['classification']:.4f}")
            case EpochDone():
                self._made.write(
                    f"{self._title}  epoch {event.epoch:>3}  loss {event.losses['classification']:.4f}  "
                    f"lr {event.learning_rate:.2e}  {event.shapes_per_second:.0f} shapes/s"
                )

    def close(self) -> None:
        if self._made is not None:
            self._made.__exit__(None, None, None)


def _recipes() -> Any:
    return resources.files("cli") / "recipes"
