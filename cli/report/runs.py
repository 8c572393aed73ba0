"""What a report says of one run, gathered from its folder, its cache and its evaluation corpora."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cli.show.progress import human_seconds
from trainer.checkpoints.files import Header
from trainer.downstream.embedding import Embedding
from trainer.downstream.inspection import Inspected
from trainer.models.student import Student

__all__ = ["Run", "cache_for", "embed", "flat_settings", "inspect", "open_run", "stages"]

logger = logging.getLogger(__name__)

MOST_CONFIG = 1 << 22  # bytes
EMBEDDED_CACHE = 1000  # shapes of a cache that are embedded where no evaluation corpora are set
Watching = Callable[[Any], None]


@dataclass
class Run:
    """One run, as far as a report has read it.

    name, folder  what it is called and where it lies
    model, header  of its newest checkpoint
    events        of train.jsonl;  metrics  metrics.json, {} where there is none;  config  config.toml
    cache         opened, or None for the reason in `no_cache`
    rows          [k] int64 shapes of the cache that are shown;  inspected  what is seen of them, or None for a reason
    embedding     of the evaluation's test split, or of the cache; None for the reason in `no_embedding`
    """

    name: str
    folder: Path
    model: Student
    header: Header
    events: list[dict[str, Any]]
    metrics: dict[str, Any]
    config: str
    cache: Any = None
    no_cache: str = ""
    rows: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    inspected: Inspected | None = None
    not_inspected: str = ""
    embedding: Embedding | None = None
    no_embedding: str = ""

    @property
    def evaluation(self) -> Mapping[str, Any] | None:
        """The result in metrics.json, if there is one."""
        found = self.metrics.get("evaluation")
        return found if isinstance(found, Mapping) and isinstance(found.get("rows"), Mapping) else None


def open_run(folder: Path, name: str) -> Run:
    """Read a run's newest checkpoint and its logs.

    Raises CheckpointError where there is none, or it is of another kind or damaged.
    """
    from teacher_cache.storage.atomic import read_regular
    from trainer.checkpoints.models import load_model
    from trainer.engine.events import read_events
    from trainer.engine.run_directory import known_json

    model, header = load_model(folder)
    try:
        config = read_regular(folder / "config.toml", MOST_CONFIG).decode("utf-8", "replace")
    except (FileNotFoundError, NotADirectoryError):
        config = ""
    return Run(name, folder, model, header, read_events(folder), known_json(folder / "metrics.json", "nothing"), config)


def cache_for(run: Run, named: Any = None) -> None:
    """Open the cache that a run was trained on, or say in `no_cache` why not.

    named  its location or the opened cache, where the caller knows it; else the run's config.toml says where it was.
    """
    import teacher_cache
    from cli.experiment.toml import ConfigError, load_experiment
    from teacher_cache.errors import CacheError
    from teacher_cache.location import resolve

    wanted = run.header.cache.get("recipe")
    try:
        if named is None:
            experiment = load_experiment(str(run.folder / "config.toml"))
            if experiment.trainer.cache:
                named = resolve(experiment.trainer.cache)
            else:
                found = [info for info in _caches_in(resolve(experiment.cache.root)) if info.recipe.hash == wanted]
                if not found:
                    run.no_cache = (
                        f"no cache of recipe {str(wanted)[:12]} in {experiment.cache.root}, where the run's settings "
                        "expect it; give it with --cache"
                    )
                    return
                named = found[0].path
        opened = named if hasattr(named, "read") else teacher_cache.open(named)
    except (CacheError, ConfigError, OSError) as error:
        run.no_cache = f"its cache cannot be opened: {error}"
        return
    if opened.recipe.hash != wanted:
        run.no_cache = (
            f"{opened.path} has the recipe {opened.recipe.hash[:12]}, but the run was trained on {str(wanted)[:12]}; "
            "give that one with --cache"
        )
        return
    run.cache = opened


def _caches_in(root: Any) -> list[Any]:
    import teacher_cache

    return teacher_cache.list_caches(root)[0]


def inspect(runs: Sequence[Run], device: Any, count: int) -> None:
    """Choose shapes that all runs' caches hold, where there are such, and look at them through every run's student."""
    from teacher_cache.errors import CacheError
    from trainer.downstream.inspection import choose_shapes, inspect_shapes

    held = {}
    for number, run in enumerate(runs):
        if run.cache is None:
            continue
        try:
            held[number] = (run.cache.ids[:: run.cache.poses], run.cache.labels[:: run.cache.poses])
        except CacheError as error:
            run.not_inspected = str(error)
    common = set.intersection(*(set(ids) for ids, _ in held.values())) if held else set()
    for number, (ids, labels) in held.items():
        run = runs[number]
        mine = np.array([row for row, id in enumerate(ids) if id in common or not common], np.int64)
        chosen = mine[choose_shapes([ids[row] for row in mine], labels[mine], count)] if len(mine) else mine
        run.rows = chosen * run.cache.poses
        settings = run.header.config.get("trainer", {})
        try:
            batch = run.cache.read(run.rows, depth=run.cache.stores_depth)
            run.inspected = inspect_shapes(
                run.model.to(device),
                batch,
                run.rows,
                image_side=run.cache.schema.image_side,
                points=int(settings.get("points", 0)),
                renormalise=bool(settings.get("renormalise", True)),
                device=device,
            )
        except (CacheError, ValueError) as error:
            run.not_inspected = f"the shapes cannot be shown: {error}"


def embed(run: Run, device: Any, watch: Watching | None) -> None:
    """Find the features of the evaluation's test split: those that the evaluation left, or computed anew; where nothing
    was evaluated, of shapes of the cache."""
    from pipeline.errors import PipelineError
    from trainer.config import EvaluationConfig
    from trainer.downstream.embedding import EMBEDDING, embedding_of, read_embedding
    from trainer.errors import TrainerError

    if run.evaluation is None or run.metrics.get("epoch") != run.header.epoch:
        _embed_cache(run, device, watch)
        return
    try:
        run.embedding = read_embedding(run.folder / EMBEDDING)
        if run.embedding.epoch == run.header.epoch:
            return
    except FileNotFoundError:
        pass
    except TrainerError as error:
        logger.warning("%s", error)
    run.embedding = None
    from trainer.checkpoints.models import section_from_json
    from trainer.downstream.comparison import Evaluator
    from trainer.downstream.features import model_encoder

    try:
        config = section_from_json(EvaluationConfig, run.metrics.get("evaluation_settings", {}))
        evaluator = Evaluator(config, watch=watch)
        kept = []

        def keep(name: str, seed: int, features: np.ndarray, score: Any) -> None:
            kept.append(embedding_of(evaluator.test, features, score, epoch=run.header.epoch, points=config.points))

        encoder = model_encoder(run.model.to(device), device, config.model_feature)
        evaluator.compare({"trained": encoder}, seeds=1, watch=watch, keep=keep)
        run.embedding = kept[0]
    except (TrainerError, PipelineError, ValueError, TypeError) as error:
        run.no_embedding = f"the evaluation's shapes cannot be encoded: {error}"


def _embed_cache(run: Run, device: Any, watch: Watching | None) -> None:
    from teacher_cache.errors import CacheError
    from trainer.downstream.features import encode, model_encoder
    from trainer.engine.augmentation import renormalised
    from trainer.engine.watching import Count

    if run.cache is None:
        run.no_embedding = "this epoch was not evaluated, and " + run.no_cache
        return
    shapes = len(run.cache) // run.cache.poses
    rows = np.unique(np.linspace(0, shapes - 1, min(shapes, EMBEDDED_CACHE)).round().astype(np.int64)) * run.cache.poses
    settings = run.header.config.get("trainer", {})
    points = int(settings.get("points", 0)) or run.cache.schema.points
    feature = "levels" if "levels" in run.model.features else next(iter(run.model.features))
    try:
        clouds = np.concatenate(
            [run.cache.read(part).points[:, :points] for part in np.array_split(rows, -(-len(rows) // 64))]
        )
        if points < run.cache.schema.points and settings.get("renormalise", True):
            clouds = renormalised(clouds)  # as in training
        labels = run.cache.labels[rows]
        ids = tuple(run.cache.ids[row] for row in rows.tolist())
    except CacheError as error:
        run.no_embedding = f"this epoch was not evaluated, and the cache cannot be read: {error}"
        return
    count = Count(watch, "encoding", "shapes", len(rows))
    features = encode(model_encoder(run.model.to(device), device, feature), clouds, batch_size=32, progress=count.add)
    run.embedding = Embedding(
        uri=f"the cache, {run.cache.path}", epoch=run.header.epoch, points=points, ids=ids, labels=labels,
        label_names=tuple(run.cache.label_names), predicted=None, rows=np.arange(len(rows)), features=features,
    )  # fmt: skip


def clouds_of(run: Run, embedding: Embedding, rows: Sequence[int]) -> list[np.ndarray] | None:
    """Read the clouds of some shapes of an embedding again; None where their corpus cannot be read.

    rows  into the embedding's ids.
    """
    from pipeline.corpora import open_corpus
    from pipeline.corpora.check import normalise
    from pipeline.errors import PipelineError
    from teacher_cache.errors import CacheError

    if embedding.predicted is None:
        try:
            places = {id: row for row, id in enumerate(run.cache.ids)}
            return list(run.cache.read([places[embedding.ids[row]] for row in rows]).points)
        except (CacheError, KeyError):
            return None
    try:
        corpus = open_corpus(embedding.uri, points=embedding.points)
        places = {corpus.id(index): index for index in range(len(corpus))}
        return [normalise(corpus[places[embedding.ids[row]]].points) for row in rows]
    except (PipelineError, KeyError, ValueError) as error:
        logger.warning("neighbours are listed without pictures: %s", error)
        return None


def stages(run: Run) -> list[tuple[str, str, str, str, str]]:
    """Time and memory of what made the run: rows of stage, time, of it, memory and GPU memory, as text."""
    rows = [*_cache_stages(run)]
    epochs = [event for event in run.events if event.get("event") == "epoch"]
    if epochs:
        seconds = sum(float(event.get("seconds", 0.0)) for event in epochs)
        waited = sum(float(event.get("waited", 0.0)) for event in epochs)
        rates = [float(event.get("shapes_per_second", 0.0)) for event in epochs]
        steps = [event for event in run.events if event.get("event") == "step"]
        slow = f"; the first step, which compiles, {human_seconds(steps[0]['seconds'])}" if steps else ""
        rows.append(
            (
                f"training, {len(epochs)} epochs",
                human_seconds(seconds),
                f"{np.median(rates):.0f} shapes/s, {waited:.1f} s waiting for data{slow}",
                *_memory(epochs),
            )
        )
    scored = [event for event in run.events if event.get("event") == "evaluation"]
    if scored:
        seconds = sum(float(event.get("seconds", 0.0)) for event in scored)
        last = float(scored[-1].get("seconds", 0.0))
        rows.append(
            (
                f"evaluation, {len(scored)} time{'s' if len(scored) > 1 else ''}",
                human_seconds(seconds),
                f"{human_seconds(last)} for the last" if len(scored) > 1 else "reading, encoding, fitting",
                *_memory(scored),
            )
        )
    return rows


def _memory(events: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    found = []
    for name in ("memory", "gpu_memory"):
        most = max((value for event in events if isinstance(value := event.get(name), int)), default=0)
        found.append(f"{most / 2**30:.2f} GiB" if most else "not logged" if name == "memory" else "none")
    return found[0], found[1]


def _cache_stages(run: Run) -> list[tuple[str, str, str, str, str]]:
    from teacher_cache.errors import CacheError
    from teacher_cache.format.paths import LOG
    from teacher_cache.storage.opening import storage_at

    if run.cache is None:
        return []
    try:
        lines = storage_at(run.cache.path).read(LOG).splitlines()
    except (OSError, CacheError):
        return []
    sums: dict[str, float] = {}
    shapes = 0
    for line in lines:
        try:
            event = json.loads(line)
            if event["event"] != "shard":
                continue
            for stage, seconds in event["seconds"].items():
                if stage != "wall":
                    sums[str(stage)] = sums.get(str(stage), 0.0) + float(seconds)
            shapes += int(event["records"])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue  # a line cut short, or of another version
    total = sum(sums.values())
    if not total:
        return []
    parts = ", ".join(f"{stage} {seconds / total:.0%}" for stage, seconds in sums.items())
    return [(f"cache, {shapes} records", human_seconds(total), parts, "not logged", "none")]


def flat_settings(header: Header) -> dict[str, str]:
    """The settings, cache and versions of a checkpoint, one text a name."""
    flat = {}
    for section, values in {**header.config, "cache": header.cache, "versions": header.versions}.items():
        for key, value in values.items():
            flat[f"{section}.{key}"] = json.dumps(value) if not isinstance(value, str) else value
    return flat
