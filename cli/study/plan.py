"""From arms, teachers and seeds to runs: who shares a cache, in which order, and where each result lies."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cli.config import ConfigError, load_experiment
from cli.experiment import SECTIONS, Experiment
from cli.study.arms import ARMS, Arm

__all__ = ["Baseline", "Run", "cache_settings", "plan_runs", "result_of", "settings_hash"]

_NOT_OF_A_RUN = {"build", "evaluation"}
_FREE = {"readers", "prefetch", "tensorboard", "keep_checkpoints", "checkpoint_every", "device"}


@dataclass(frozen=True)
class Run:
    """One training run, or (arm "untrained") the student before it.

    config, overrides  what load_experiment makes the experiment of
    cache              key of its cache: runs of one key share one
    sets               (name, train URI, test URI) it is evaluated on
    folder             where it works and leaves result.json
    settings           hash of all that decides its numbers
    """

    arm: str
    teacher: str
    seed: int
    config: str
    overrides: tuple[str, ...]
    cache: str
    sets: tuple[tuple[str, str, str], ...]
    folder: Path
    settings: str

    @property
    def title(self) -> str:
        return f"{self.arm}, {self.teacher}, seed {self.seed}"


Baseline = "untrained"


def plan_runs(
    config: str,
    overrides: Sequence[str],
    *,
    teachers: Mapping[str, Sequence[str]],
    main: str,
    seeds: int,
    real: Sequence[tuple[str, str, str]],
    only: Sequence[str],
    folder: Path,
) -> list[Run]:
    """The runs of a study, seed by seed, so that a study that is stopped holds a balanced part.

    Raises ConfigError for arms or teachers that do not exist and for settings with problems.
    """
    problems = [
        f"--only {name}: arms are {', '.join(arm.name for arm in ARMS)}" for name in only if name not in _names()
    ]
    if main not in teachers:
        problems.append(f"--main {main}: teachers are {', '.join(teachers)}")
    if problems:
        raise ConfigError("the options", problems)
    runs: list[Run] = []
    for seed in range(seeds):
        runs.append(_run(Arm(Baseline, (), "none"), main, seed, config, overrides, teachers, real, folder))
        for arm in ARMS:
            if only and arm.name not in only:
                continue
            for teacher in teachers if arm.teachers == "each" else [main]:
                runs.append(_run(arm, teacher, seed, config, overrides, teachers, real, folder))
    return runs


def cache_settings(run: Run) -> Experiment:
    """The experiment whose cache a run reads."""
    return load_experiment(run.config, run.overrides)


def settings_hash(experiment: Experiment, sets: Sequence[tuple[str, str, str]]) -> str:
    """Hash of the settings that decide a run's numbers, and of what it is evaluated on."""
    sections = {name: asdict(getattr(experiment, name)) for name in SECTIONS if name not in _NOT_OF_A_RUN}
    sections["trainer"] = {key: value for key, value in sections["trainer"].items() if key not in _FREE}
    sections["evaluation"] = {
        key: value for key, value in asdict(experiment.evaluation).items() if key in ("points", "stored_points")
    }
    text = json.dumps([sections, list(sets)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def result_of(run: Run) -> dict[str, Any] | None:
    """A run's result, where it has one of these settings; None where it is still to be done.

    Raises ConfigError for a result of other settings.
    """
    path = run.folder / "result.json"
    if not path.is_file():
        return None
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if result["settings"] != run.settings:
        raise ConfigError(
            str(run.folder),
            ["holds a result of other settings; name another --out, repeat the settings, or delete the folder"],
        )
    return result


def _names() -> set[str]:
    return {arm.name for arm in ARMS}


def _run(
    arm: Arm,
    teacher: str,
    seed: int,
    config: str,
    overrides: Sequence[str],
    teachers: Mapping[str, Sequence[str]],
    real: Sequence[tuple[str, str, str]],
    folder: Path,
) -> Run:
    settings = [*overrides, *teachers[teacher], *arm.settings, f"trainer.seed={seed}"]
    if arm.poses > 1:
        epochs = load_experiment(config, settings).trainer.epochs
        if epochs % arm.poses:
            raise ConfigError(
                config, [f"trainer.epochs = {epochs} does not divide by the {arm.poses} poses of {arm.name}"]
            )
        settings += [f"corpus.poses={arm.poses}", f"trainer.epochs={epochs // arm.poses}", "trainer.warmup_epochs=0"]
    experiment = load_experiment(config, settings)
    sets = (("synthetic", experiment.evaluation.train, experiment.evaluation.test), *real)
    shown = "none" if arm.teachers == "none" else teacher
    return Run(
        arm=arm.name,
        teacher=shown,
        seed=seed,
        config=config,
        overrides=tuple(settings),
        cache=f"{teacher}-{arm.poses}",
        sets=sets,
        folder=folder / shown / arm.name / f"seed-{seed}",
        settings=settings_hash(experiment, sets),
    )
