"""The experiment that repairs a cache: settings from the cache's checked recipe, paths from its notes.

Anybody may have made a cache. Its recipe has a checksum and names the cache; the copy of an experiment in logs/ has
neither. So the copy is asked for places only: where the corpus and the teacher's weights lie, and which of the corpus'
shapes were built. What is found there has to match the recipe, or nothing is built. How a build runs (scheduler,
workers, devices) comes from the command line and the defaults, never from the cache: a Dask scheduler's address is
trusted with code.
"""

import tomllib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cli.experiment.toml import ConfigError

if TYPE_CHECKING:
    from cli.experiment.sections import Experiment
    from teacher_cache.location import Location
    from teacher_cache.recipe import Recipe

__all__ = ["CONFIG_COPY", "experiment_by_recipe"]

CONFIG_COPY = "logs/config.toml"  # of a cache: the experiment that built it
_MAX_COPY = 1 << 20  # bytes; a real copy has a few thousand
_PLACES: dict[str, dict[str, type]] = {
    "corpus": {"uri": str, "only": str, "take": int, "share": float, "share_seed": int},
    "teacher": {"architecture": str, "pretrained": str, "weights": str, "quickgelu": str, "seed": int},
}


def experiment_by_recipe(path: "Location", *, scheduler: str | None = None, workers: int | None = None) -> "Experiment":
    """Return the experiment whose build makes the cache at ``path``.

    It runs on this machine unless ``scheduler`` says otherwise.

    Raises ConfigError where the cache has no notes, or notes that do not give an experiment; CacheError where neither
    recipe nor manifest is intact.
    """
    from cli.experiment.sections import Experiment
    from pipeline.config import BuildConfig, CorpusConfig, TeacherConfig
    from teacher_cache.config import CacheConfig
    from teacher_cache.location import parent
    from teacher_cache.maintenance.repair import sound_description
    from trainer.config import AlignmentConfig, EvaluationConfig, TrainerConfig
    from trainer.models.config import MaskingConfig, ModelConfig

    recipe = sound_description(path).recipe
    places = _places(path)
    points: Any = recipe.corpus.get("points")
    folder, ending = str(path).rstrip("/").rpartition("/")[2], f"-{recipe.hash[:12]}"
    name = folder.removesuffix(ending) if folder.endswith(ending) else ""  # a renamed folder has to be named back
    storage = CacheConfig.from_storage(dict(recipe.storage))
    build = BuildConfig()
    try:
        return Experiment(
            name=f"the recipe of {path}",
            corpus=CorpusConfig(**places["corpus"], points=points, poses=recipe.corpus.get("poses", 1)),
            projection=_projection(recipe, points),
            teacher=TeacherConfig(
                **places["teacher"],
                precision=recipe.teacher["precision"],
                image_side=recipe.teacher["sizes"].get("image_side", 0),  # of timm's towers alone
            ),
            cache=_replaced(storage, root=str(parent(path)), name=name),
            build=_replaced(
                build,
                scheduler=build.scheduler if scheduler is None else scheduler,
                workers=build.workers if workers is None else workers,
            ),
            model=ModelConfig(),
            masking=MaskingConfig(),
            alignment=AlignmentConfig(),
            trainer=TrainerConfig(),
            evaluation=EvaluationConfig(),
        )
    except (KeyError, TypeError) as error:
        raise ConfigError(str(path), [f"its recipe or {CONFIG_COPY} lacks {error}; {_REMEDY}"]) from error


_REMEDY = "give the experiment it was built from with --config"


def _projection(recipe: "Recipe", points: Any) -> Any:
    from pipeline.config import ProjectionConfig

    settings = dict(recipe.projection)
    seen = settings.pop("points")
    return ProjectionConfig(points=0 if seen == points else seen, **settings)


def _replaced(section: Any, **changes: Any) -> Any:
    from dataclasses import replace

    return replace(section, **changes)


def _places(path: "Location") -> dict[str, dict[str, Any]]:
    """Read the paths, and nothing else, from the copy in logs/."""
    from teacher_cache.storage.opening import storage_at

    try:
        data = storage_at(path).read(CONFIG_COPY)
    except FileNotFoundError as error:
        raise ConfigError(str(path), [f"has no {CONFIG_COPY}; {_REMEDY}"]) from error
    try:
        if len(data) > _MAX_COPY:
            raise ValueError(f"{len(data)} bytes")
        copy: Mapping[str, Any] = tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}/{CONFIG_COPY}", [f"cannot be read ({error}); {_REMEDY}"]) from error
    found: dict[str, dict[str, Any]] = {}
    for section, kinds in _PLACES.items():
        given = copy.get(section, {})
        given = given if isinstance(given, dict) else {}
        found[section] = {key: given[key] for key, kind in kinds.items() if type(given.get(key)) is kind}
    if "uri" not in found["corpus"]:
        raise ConfigError(f"{path}/{CONFIG_COPY}", [f"has no corpus.uri; {_REMEDY}"])
    return found
