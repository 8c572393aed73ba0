"""``fewshot:?train=URI&test=URI``: one half of a few-shot episode over labelled corpora, as a corpus of its own."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pipeline.corpora.base import Corpus, CorpusError, Inspection, Shape, identity_hash
from pipeline.corpora.episodes import QUERIES, Pool, draw_episode
from pipeline.corpora.options import Options

__all__ = ["EpisodeCorpus", "open_episode"]


class EpisodeCorpus:
    """Some shapes of another corpus, under the labels 0..way - 1 of an episode.

    Attributes:
        uri, identity, part_names: see Corpus
        label_names: the episode's classes, in its order
        points: points of each shape
    """

    def __init__(
        self,
        *,
        uri: str,
        identity: Mapping[str, Any],
        pool: Corpus,
        chosen: tuple[int, ...],
        classes: tuple[str, ...],
        split: str,
    ) -> None:
        self.uri = uri
        self.identity = dict(identity)
        self.label_names = classes
        self.part_names = pool.part_names
        self.points = pool.points
        self._pool, self._chosen, self._split = pool, chosen, split

    def __len__(self) -> int:
        return len(self._chosen)

    def id(self, index: int) -> str:
        return self._pool.id(self._at(index))

    def source(self, index: int) -> str:
        return self._pool.source(self._at(index))

    def label(self, index: int) -> int | None:
        label = self._pool.label(self._at(index))
        assert label is not None
        return self.label_names.index(self._pool.label_names[label])

    def split_of(self, index: int) -> str | None:
        self._at(index)
        return self._split

    def format_of(self, index: int) -> str:
        return self._pool.format_of(self._at(index))

    def inspect(self, index: int) -> Inspection:
        return self._pool.inspect(self._at(index))

    def fingerprint(self, index: int) -> str:
        facts = {"shape": self._pool.fingerprint(self._at(index)), "label": self.label(index), "split": self._split}
        return identity_hash(facts)

    def stamp(self, index: int) -> str | None:
        return self._pool.stamp(self._at(index))

    def __getitem__(self, index: int) -> Shape:
        return replace(self._pool[self._at(index)], label=self.label(index), split=self._split)

    def _at(self, index: int) -> int:
        if not 0 <= index < len(self._chosen):
            raise IndexError(f"index {index} is outside 0..{len(self._chosen) - 1}")
        return self._chosen[index]


def open_episode(train: Corpus, test: Corpus | None, options: Options, points: int) -> EpisodeCorpus:
    """Open ``fewshot:?train=URI&test=URI&way=5&shot=10&fold=0&seed=0&queries=20&split=train|test``.

    train, test  the corpora that the URI's options name; without `test` the queries are other shapes of `train`.
    """
    way = options.integer("way", 5, low=2, high=1000)
    shot = options.integer("shot", 10, low=1, high=10**6)
    fold = options.integer("fold", 0, low=0)
    seed = options.integer("seed", 0, low=0)
    queries = options.integer("queries", QUERIES, low=1, high=10**6)
    split = options.choice("split", ("train", "test"), "train")
    options.finish()
    for pool in (train, test or train):
        if not pool.label_names:
            raise CorpusError(f"{options.uri}: {pool.uri} has no labels; an episode is drawn by class")
    if test is not None:
        shared = {train.source(index) for index in range(len(train))} & {
            test.source(index) for index in range(len(test))
        }
        if shared:
            raise CorpusError(
                f"{options.uri}: {len(shared)} shapes are in train= and in test=, for instance {min(shared)}. Use two "
                "splits, or leave test= out to draw both from one corpus."
            )
    episode = draw_episode(
        _pool(train), None if test is None else _pool(test), way=way, shot=shot, fold=fold, seed=seed, queries=queries
    )
    drawn_from, chosen = (train, episode.support) if split == "train" else (test or train, episode.queries)
    identity = {
        "kind": "fewshot", "points": points, "way": way, "shot": shot, "fold": fold, "seed": seed, "queries": queries,
        "split": split, "train": dict(train.identity), "test": None if test is None else dict(test.identity),
        "content": identity_hash({"ids": [drawn_from.id(index) for index in chosen]}),
    }  # fmt: skip
    return EpisodeCorpus(
        uri=options.uri, identity=identity, pool=drawn_from, chosen=chosen, classes=episode.classes, split=split
    )


def _pool(corpus: Corpus) -> Pool:
    labels = [corpus.label(index) for index in range(len(corpus))]
    names = corpus.label_names
    return Pool(
        [corpus.id(index) for index in range(len(corpus))],
        [None if label is None else names[label] for label in labels],
    )
