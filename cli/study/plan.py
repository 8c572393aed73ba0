"""The runs of a study from its arms, teachers and seeds: shared caches, order, and result paths."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.experiment.sections import SECTIONS, Experiment
from cli.experiment.toml import ConfigError, load_experiment
from cli.study.arms import ARMS, Arm, members_of
from pipeline.config import CorpusConfig
from trainer.config import AlignmentConfig, TeachersConfig, teachers_conflicts
from trainer.models.config import MaskingConfig

if TYPE_CHECKING:
    from teacher_cache.location import Location

__all__ = [
    "UNTRAINED",
    "Run",
    "cache_name",
    "cache_settings",
    "caches_of",
    "differences",
    "plan_runs",
    "require_caches",
    "result_of",
]

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
    further            of further teachers: (key of the cache, overrides of the experiment that builds it)
    corpus             name of what it trains on; "" where the study has one corpus
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
    further: tuple[tuple[str, tuple[str, ...]], ...] = ()
    corpus: str = ""

    @property
    def title(self) -> str:
        on = f" on {self.corpus}" if self.corpus else ""
        return f"{self.arm}, {self.teacher}{on}, seed {self.seed}"


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
    corpora: Sequence[tuple[str, str]] = (),
) -> list[Run]:
    """Plan the runs of a study, seed by seed, so that a stopped study holds a balanced part.

    teachers  name -> settings, or a combination of others (`cli.study.arms.members_of`).
    only      names of arms, or arm:teacher for that teacher alone; nothing: all.
    corpora   (name, URI) to train on, each in turn; nothing: the configuration's own.

    Raises ConfigError for arms or teachers that do not exist and for settings with problems.
    """
    problems = list(_problems(only, main, teachers, arms))
    own = (("--real", ["synthetic", *(name for name, *_ in real)]), ("--pretrain-on", [name for name, *_ in corpora]))
    for option, names in own:
        twice = sorted({name for name in names if names.count(name) > 1})
        problems += [f"{option} {name}: that name is taken; choose another" for name in twice]
    if problems:
        raise ConfigError("the options", problems)
    plan = _Plan(config, tuple(overrides), teachers, tuple(real), folder)
    runs: list[Run] = []
    for seed in range(seeds):
        runs.append(plan.run(Arm(UNTRAINED, (), "none"), main, seed, *(corpora[:1] or [("", "")]), untrained=True))
        for corpus in corpora or [("", "")]:
            for arm in arms:
                for teacher in teachers if arm.teachers == "each" else [main]:
                    if not only or arm.name in only or f"{arm.name}:{teacher}" in only:
                        runs.append(plan.run(arm, teacher, seed, corpus))
    return runs


def _problems(
    only: Sequence[str], main: str, teachers: Mapping[str, Sequence[str]], arms: Sequence[Arm]
) -> Iterator[str]:
    known = {arm.name: arm for arm in arms}
    for text in only:
        name, colon, teacher = text.partition(":")
        if name not in known:
            yield f"--only {text}: arms are {', '.join(known)}"
        elif colon and teacher not in (teachers if known[name].teachers == "each" else [main]):
            runs = ", ".join(teachers) if known[name].teachers == "each" else main
            yield f"--only {text}: {name} runs with {runs}"
    if main not in teachers:
        yield f"--main {main}: teachers are {', '.join(teachers)}"
    for name in teachers:
        try:
            members_of(name, teachers)
        except ValueError as error:
            yield str(error)


def cache_settings(run: Run) -> Experiment:
    """Load the experiment of a run, whose cache it reads."""
    return load_experiment(run.config, run.overrides)


def caches_of(run: Run) -> dict[str, Experiment]:
    """Load the experiments of all caches that a run reads, by key, its first teacher's first."""
    further = {key: load_experiment(run.config, overrides) for key, overrides in run.further}
    return {run.cache: cache_settings(run)} | further


def result_of(run: Run) -> dict[str, Any] | None:
    """Read a run's result for these settings; None if it is still to be done.

    Raises ConfigError naming what differs for a result of other settings.
    """
    from trainer.engine.run_directory import known_json

    path = run.folder / "result.json"
    result = known_json(path, "the run")
    if not result:
        return None
    found = list(differences(result["settings"], json.loads(run.settings)))
    if found:
        found.append("choose another --out, repeat the settings, or delete the folder")
        raise ConfigError(f"{run.folder}, which has a result of other settings", found)
    return result


def cache_name(cache: "Location") -> str:
    """Return the last part of a cache's location: its name and the start of its recipe's hash."""
    return str(cache).rpartition("/")[2]


def require_caches(
    run: Run, result: Mapping[str, Any], caches: Mapping[str, "Location"], *, source: str | None = None
) -> None:
    """Raise ConfigError unless an earlier result was obtained on the caches that the other runs will read.

    caches  key -> cache, of those that are known.
    source  the file the result comes from; None: the run's folder.
    """
    keys = (run.cache, *(key for key, _ in run.further))
    for key, name in zip(keys, (result["cache"], *result.get("further", ())), strict=True):
        if key in caches and name != cache_name(caches[key]):
            remedy = "choose another --out, or delete the folder" if source is None else "leave the file out"
            raise ConfigError(
                str(run.folder) if source is None else f"{source}: {run.title}",
                [
                    f"its result belongs to the cache {name}, but teacher, corpus and projection now give "
                    f"{cache_name(caches[key])}; {remedy}"
                ],
            )


def _settings(experiment: Experiment, sets: Sequence[tuple[str, str, str]], further: Sequence[Experiment]) -> str:
    from pipeline.build.selection import listed_ids

    sections = {name: asdict(getattr(experiment, name)) for name in SECTIONS if name not in _NOT_OF_A_RUN}
    for key in _SELECTION:
        if sections["corpus"][key] == getattr(CorpusConfig(), key):
            del sections["corpus"][key]  # absent where nothing is selected, as in results before there were selections
    if experiment.alignment.contrast == AlignmentConfig().contrast:
        del sections["alignment"]["contrast"]
    if experiment.masking.per_shape == MaskingConfig().per_shape:
        del sections["masking"]["per_shape"]
    if experiment.teachers == TeachersConfig():
        del sections["teachers"]  # absent where they do nothing, as in results before there were several
    if further:
        told = ("projection", "teacher", "cache")
        more = [{name: asdict(getattr(one, name)) for name in told} for one in further]
        for one in more:
            del one["cache"]["root"]
        sections["further"] = {str(place): one for place, one in enumerate(more, start=2)}
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


def differences(old: Mapping[str, Mapping[str, Any]], new: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Say of each setting that differs what it was and what it is: section -> key -> value."""
    for section in sorted({*old, *new}):
        then, now = old.get(section, {}), new.get(section, {})
        for key in sorted({*then, *now}):
            if then.get(key) != now.get(key):
                yield f"{section}.{key} was {then.get(key, 'absent')!r}, is now {now.get(key, 'absent')!r}"


@dataclass(frozen=True)
class _Plan:
    """What all runs of a study have in common; the arguments of plan_runs."""

    config: str
    overrides: tuple[str, ...]
    teachers: Mapping[str, Sequence[str]]
    real: tuple[tuple[str, str, str], ...]
    folder: Path

    def run(self, arm: Arm, teacher: str, seed: int, corpus: tuple[str, str], *, untrained: bool = False) -> Run:
        """Plan one run; an untrained student is of no corpus, though its cache is."""
        members, own = members_of(teacher, self.teachers)
        if arm.teachers == "none":  # a cache is read all the same, for its clouds
            members, own = members[:1], ()
        name, uri = corpus
        before = [*self.overrides, *([f"corpus.uri={json.dumps(uri)}"] if uri else [])]
        after = [*own, *arm.settings, f"trainer.seed={seed}"]
        after += self._more(arm, [*before, *self.teachers[members[0]], *after])
        each = [(*before, *self.teachers[member], *after) for member in members]
        experiments = [load_experiment(self.config, settings) for settings in each]
        keys = [
            "-".join([member, str(arm.poses), *([name] if name else []), *_selection(experiment)])
            for member, experiment in zip(members, experiments, strict=True)
        ]
        first = experiments[0]
        faults = list(teachers_conflicts(first.teachers, first.trainer, len(members)))
        if first.teachers.caches:
            faults.append("teachers.caches is not used by a study, which builds its caches; give --teacher NAME=A+B")
        if faults:
            raise ConfigError(f"the arm {arm.name} with the teacher {teacher}", faults)
        sets = (("synthetic", first.evaluation.train, first.evaluation.test), *self.real)
        shown = "none" if arm.teachers == "none" else teacher
        on = "" if untrained else name
        return Run(
            arm=arm.name,
            teacher=shown,
            seed=seed,
            config=self.config,
            overrides=each[0],
            cache=keys[0],
            sets=sets,
            folder=self.folder / (f"{shown}@{on}" if on else shown) / arm.name / f"seed-{seed}",
            settings=_settings(first, sets, experiments[1:]),
            further=tuple(zip(keys[1:], each[1:], strict=True)),
            corpus=on,
        )

    def _more(self, arm: Arm, settings: Sequence[str]) -> list[str]:
        """Settings that follow from an arm's poses, share, epochs and masks."""
        more: list[str] = []
        if (arm.poses, arm.share, arm.epochs, arm.masks) == (1, 1, 1, 1):
            return more
        trainer = load_experiment(self.config, settings).trainer
        if arm.poses > 1:
            # A shard holds as many fewer shapes as there are poses; as many shapes are to be shuffled together.
            more += [f"corpus.poses={arm.poses}", f"trainer.shuffle_window={trainer.shuffle_window * arm.poses}"]
        if arm.share < 1:
            more.append(f"corpus.share={arm.share}")
        if arm.masks > 1:
            shapes = max(2, trainer.batch_size // arm.masks)  # the global loss needs another shape
            more += [f"masking.per_shape={arm.masks}", f"trainer.batch_size={shapes}"]
        if arm.share < 1 or arm.epochs > 1 or arm.masks > 1:
            epochs = max(1, round(trainer.epochs * arm.epochs / arm.share / arm.masks))
            warm = round(trainer.warmup_epochs * arm.epochs / arm.share / arm.masks)
            more += [f"trainer.epochs={epochs}", f"trainer.warmup_epochs={warm}"]
        return more
