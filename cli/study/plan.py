"""The runs of a study from its arms, teachers and seeds: shared caches, order, and result paths."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.experiment.sections import SECTIONS, Experiment
from cli.experiment.toml import ConfigError, load_experiment
from cli.study.arms import ARMS, Arm
from pipeline.config import CorpusConfig

if TYPE_CHECKING:
    from teacher_cache.location import Location

__all__ = ["UNTRAINED", "Run", "cache_name", "cache_settings", "plan_runs", "require_cache", "result_of"]

UNTRAINED = "untrained"
"""The arm of first weights."""

_NOT_OF_A_RUN = {"build", "evaluation"}
_SCORING = ("stored_points", "points", "feature", "protocol", "grid", "folds", "reference_c")
_SELECTION = ("only", "take", "share", "share_seed")
_FREE = {"readers", "prefetch", "tensorboard", "keep_checkpoints", "checkpoint_every", "device"}


@dataclass(frozen=True)
class Run:
    """One training run, or (arm "untrained") the student before it.

    config, overrides  arguments of load_experiment
    cache              key of its cache: runs of one key share one
    sets               (name, train URI, test URI) it is evaluated on
    folder             where it works and leaves result.json
    settings           JSON of all that decides its numbers: section -> key -> value
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
    arms: Sequence[Arm] = ARMS,
) -> list[Run]:
    """Plan the runs of a study, seed by seed, so that a stopped study holds a balanced part.

    Raises ConfigError for arms or teachers that do not exist and for settings with problems.
    """
    problems = [
        f"--only {name}: arms are {', '.join(arm.name for arm in arms)}"
        for name in only
        if name not in {arm.name for arm in arms}
    ]
    if main not in teachers:
        problems.append(f"--main {main}: teachers are {', '.join(teachers)}")
    if problems:
        raise ConfigError("the options", problems)
    runs: list[Run] = []
    for seed in range(seeds):
        runs.append(_run(Arm(UNTRAINED, (), "none"), main, seed, config, overrides, teachers, real, folder))
        for arm in arms:
            if (only and arm.name not in only) or (arm.seeds is not None and seed >= arm.seeds):
                continue
            for teacher in teachers if arm.teachers == "each" else [main]:
                runs.append(_run(arm, teacher, seed, config, overrides, teachers, real, folder))
    return runs


def cache_settings(run: Run) -> Experiment:
    """Load the experiment whose cache a run reads."""
    return load_experiment(run.config, run.overrides)


def result_of(run: Run) -> dict[str, Any] | None:
    """Read a run's result for these settings; None if it is still to be done.

    Raises ConfigError naming what differs for a result of other settings.
    """
    from trainer.engine.run_directory import known_json

    path = run.folder / "result.json"
    result = known_json(path, "the run")
    if not result:
        return None
    differences = list(_differences(result["settings"], json.loads(run.settings)))
    if differences:
        differences.append("choose another --out, repeat the settings, or delete the folder")
        raise ConfigError(f"{run.folder}, which has a result of other settings", differences)
    return result


def cache_name(cache: "Location") -> str:
    """Return the last part of a cache's location: its name and the start of its recipe's hash."""
    return str(cache).rpartition("/")[2]


def require_cache(run: Run, result: Mapping[str, Any], cache: "Location") -> None:
    """Raise ConfigError unless an earlier result was obtained on the cache that the other runs will read."""
    if result["cache"] != cache_name(cache):
        raise ConfigError(
            str(run.folder),
            [
                f"its result belongs to the cache {result['cache']}, but teacher, corpus and projection now give "
                f"{cache_name(cache)}; choose another --out, or delete the folder"
            ],
        )


def _settings(experiment: Experiment, sets: Sequence[tuple[str, str, str]]) -> str:
    from pipeline.build.selection import listed_ids

    sections = {name: asdict(getattr(experiment, name)) for name in SECTIONS if name not in _NOT_OF_A_RUN}
    for key in _SELECTION:
        if sections["corpus"][key] == getattr(CorpusConfig(), key):
            del sections["corpus"][key]  # absent where nothing is selected, as in results before there were selections
    sections["trainer"] = {key: value for key, value in sections["trainer"].items() if key not in _FREE}
    if experiment.corpus.only:  # the list's content, wherever the file is
        ids = "\n".join(sorted(listed_ids(experiment.corpus.only)))
        sections["corpus"]["only"] = hashlib.sha256(ids.encode("utf-8", "surrogatepass")).hexdigest()
    del sections["cache"]["root"]
    sections["evaluation"] = {key: getattr(experiment.evaluation, key) for key in _SCORING}
    sections["sets"] = {name: [train, test] for name, train, test in sets}
    return json.dumps(sections, sort_keys=True)  # tuples become lists, as in what is read back


def _selection(experiment: Experiment) -> list[str]:
    """List the settings that select a run's shapes, as text; nothing if it uses all of its corpus."""
    corpus = experiment.corpus
    return [f"{key}={getattr(corpus, key)}" for key in _SELECTION] if corpus.selects else []


def _differences(old: Mapping[str, Mapping[str, Any]], new: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for section in sorted({*old, *new}):
        then, now = old.get(section, {}), new.get(section, {})
        for key in sorted({*then, *now}):
            if then.get(key) != now.get(key):
                yield f"{section}.{key} was {then.get(key, 'absent')!r}, is now {now.get(key, 'absent')!r}"


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
        # A shard holds as many fewer shapes as there are poses; as many shapes are to be shuffled together.
        window = load_experiment(config, settings).trainer.shuffle_window
        settings += [f"corpus.poses={arm.poses}", f"trainer.shuffle_window={window * arm.poses}"]
    if arm.share < 1:
        trainer = load_experiment(config, settings).trainer
        settings += [f"corpus.share={arm.share}", f"trainer.epochs={round(trainer.epochs / arm.share)}"]
        settings += [f"trainer.warmup_epochs={round(trainer.warmup_epochs / arm.share)}"]
    experiment = load_experiment(config, settings)
    sets = (("synthetic", experiment.evaluation.train, experiment.evaluation.test), *real)
    shown = "none" if arm.teachers == "none" else teacher
    return Run(
        arm=arm.name,
        teacher=shown,
        seed=seed,
        config=config,
        overrides=tuple(settings),
        cache="-".join([teacher, str(arm.poses), *_selection(experiment)]),
        sets=sets,
        folder=folder / shown / arm.name / f"seed-{seed}",
        settings=_settings(experiment, sets),
    )
