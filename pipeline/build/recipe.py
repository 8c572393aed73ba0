"""The recipe of a cache, collected from the settings that determine its bytes."""

import json
from collections.abc import Mapping
from typing import Any

from pipeline.build.poses import pose_settings
from pipeline.config import CorpusConfig, ProjectionConfig
from pipeline.corpora import Corpus
from teacher_cache import CacheConfig, Recipe

__all__ = ["corpus_recipe", "is_of", "recipe_for"]


def corpus_recipe(corpus: Corpus, *, points: int, poses: int) -> dict[str, Any]:
    """Return the corpus part of a recipe."""
    return {**corpus.identity, "points": points, **pose_settings(poses)}


def is_of(corpus: Corpus, config: CorpusConfig, recipe: Recipe) -> bool:
    """Check whether a cache of this recipe is of this corpus, whatever its teacher and number of shapes."""
    asked = corpus_recipe(corpus, points=config.points, poses=config.poses)
    return bool(json.loads(json.dumps(asked)) == dict(recipe.corpus))


def recipe_for(
    corpus: Corpus,
    projection: ProjectionConfig,
    teacher: Mapping[str, Any],
    cache: CacheConfig,
    *,
    points: int,
    poses: int = 1,
) -> Recipe:
    """Return the recipe of a cache.

    corpus   its identity is part of the recipe, its size never.
    teacher  `Teacher.identity()`.
    points   stored for each shape; a projection of all of them and of the first `points` are the same.
    poses    stored of each shape.
    """
    return Recipe(
        corpus=corpus_recipe(corpus, points=points, poses=poses),
        projection={
            "image_side": projection.image_side,
            "patch_side": projection.patch_side,
            "splat": projection.splat,
            "reduction": projection.reduction,
            "points": projection.points or points,
            "normalisation": projection.normalisation,
            # absent where it is 0, so that caches made before the setting existed keep their name
            **({"depth_offset": projection.depth_offset} if projection.depth_offset else {}),
        },
        teacher=teacher,
        storage=cache.storage(),
    )
