"""Few-shot episodes: some classes, a few shapes of each to learn from, and some to be asked about.

An episode is a function of (seed, fold) and of the names of classes and shapes, not of their order. The classes of a
5-way fold are the first five of its 10-way one, and 10 shots are the first of 20, so that settings share as many
classes and shapes as possible.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from pipeline.corpora.base import CorpusError, shape_generator

__all__ = ["QUERIES", "Episode", "Pool", "draw_episode"]

QUERIES = 20  # shapes asked about in each class, as in the field's folds


class Pool(NamedTuple):
    """Labelled shapes to draw from: ids (unique), and the name of each one's class, None for none. [n] each."""

    ids: Sequence[str]
    classes: Sequence[str | None]


class Episode(NamedTuple):
    """One drawn episode.

    classes  [way] names, which the labels 0..way - 1 stand for
    support  [way * shot] indices into the training pool, class by class
    queries  [way * queries] indices into the test pool (the training pool where there is none), class by class
    """

    classes: tuple[str, ...]
    support: tuple[int, ...]
    queries: tuple[int, ...]


def draw_episode(
    train: Pool, test: Pool | None, *, way: int, shot: int, fold: int, seed: int = 0, queries: int = QUERIES
) -> Episode:
    """Draw one episode.

    test  None: the queries are other shapes of `train`.

    Raises CorpusError where fewer than `way` classes have enough shapes, with how many have. Source of the protocol:
    Sharma and Kaul 2020, as in Point-BERT (Yu et al. 2022), whose folds are files: others are another benchmark.
    """
    if way < 2 or shot < 1 or queries < 1 or fold < 0:
        raise ValueError(f"way {way}, shot {shot}, queries {queries}, fold {fold}; expected 2, 1, 1 and 0 or more")
    of_train = _by_class(train)
    of_test = of_train if test is None else _by_class(test)
    needed = shot + queries if test is None else shot
    able = sorted(
        name for name, held in of_train.items() if len(held) >= needed and len(of_test.get(name, ())) >= queries
    )
    if len(able) < way:
        where = f"{needed} shapes" if test is None else f"{shot} to train and {queries} to test on"
        raise CorpusError(
            f"{way} classes were requested; {len(able)} of {len(of_train)} have {where}. Ask for fewer ways, shots or "
            "queries."
        )
    drawn = _shuffled(able, seed, fold, "classes")[:way]
    support: list[int] = []
    asked: list[int] = []
    for name in drawn:
        order = _shuffled(sorted(of_train[name]), seed, fold, f"train {name}")
        support += [of_train[name][id] for id in order[:shot]]
        if test is None:  # from the other end, so that more shots take none of the queries while there are enough
            asked += [of_train[name][id] for id in order[::-1][:queries]]
        else:
            asked += [
                of_test[name][id] for id in _shuffled(sorted(of_test[name]), seed, fold, f"test {name}")[:queries]
            ]
    return Episode(tuple(drawn), tuple(support), tuple(asked))


def _by_class(pool: Pool) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = defaultdict(dict)
    for index, (id, name) in enumerate(zip(pool.ids, pool.classes, strict=True)):
        if name is not None:
            found[name][id] = index
    return found


def _shuffled(names: list[str], seed: int, fold: int, purpose: str) -> list[str]:
    keys = shape_generator(seed, f"fold {fold}", f"few-shot {purpose}").random(len(names)).tolist()
    return [name for _, name in sorted(zip(keys, names, strict=True))]
