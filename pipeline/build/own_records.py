"""The records of a finished cache that an experiment trains on: those of its own shapes."""

from collections.abc import Set

from pipeline.build.changes import shapes_in
from pipeline.build.recipe import is_of
from pipeline.build.selection import OwnShapes, select_shapes
from pipeline.config import CorpusConfig
from pipeline.corpora import Corpus, CorpusError, MachineFault, open_corpus
from pipeline.errors import BuildError
from teacher_cache import Cache, Selection, first, select

__all__ = ["own_records"]


def own_records(cache: Cache, corpus: CorpusConfig, *, as_it_is: bool = False) -> tuple[Cache | Selection, list[str]]:
    """Return the cache, or the selection of it, that an experiment trains on; and notes for the user, one per line.

    as_it_is  shapes that have left the corpus since still belong to the experiment (trainer.stale_cache = "train").

    An experiment that selects shapes gets these, or an error. One that does not select gets what the cache has of its
    corpus: no more generated shapes than it asks for, but all files, since a cache of vanished files is refused earlier
    (`changes_at`). Where the corpus cannot be opened, or the cache belongs to another, the settings select among the
    shapes of the cache, including quarantined ones.

    Raises BuildError where shapes that are selected are not there, MachineFault, and CacheError.
    """
    notes: list[str] = []
    source = _corpus_of(cache, corpus)
    shapes = None if source is None else OwnShapes.of(source, corpus, lacking=as_it_is)
    if not corpus.selects and (shapes is None or not shapes.by_rule):
        if shapes is not None and not as_it_is:  # every shape of the cache is in the corpus, or it is refused before
            lacking = len(shapes.places) - len(cache) // cache.poses - len(cache.info().quarantined)
            if lacking > 0:
                notes.append(_lacking(lacking, len(shapes.places)))
        return cache, notes
    usable: list[str] = []
    held: list[str] = []
    for receipt in cache.receipts():
        usable += receipt.ids[:: cache.poses]
        held += shapes_in(receipt, cache.poses)
    own: Set[str]
    if shapes is None:
        notes.append("note: the shapes are selected among those of the cache, because its corpus is not available here")
        own = {held[index] for index in select_shapes(held, corpus, where="the cache").tolist()}
    elif as_it_is:
        own = shapes.with_absent([id for id in held if id not in shapes.corpus])
    else:
        own = shapes.places.keys()
    if missing := sorted(own - set(held)):
        if corpus.selects:
            raise BuildError(
                f"{cache.path}: expected the shapes that [corpus] selects; {len(missing)} of its {len(own)} shapes "
                f"are not in the cache, first {missing[0]!r}.\n"
                "  Add them with `i2p cache build CONFIG`, or select other shapes."
            )
        notes.append(_lacking(len(missing), len(own)))
    mine = [id for id in usable if id in own]
    if not mine:
        raise BuildError(f"{cache.path}: contains none of the {len(own)} shapes of {corpus.uri}")
    if len(mine) < len(usable):
        notes.append(f"note: the experiment uses {len(mine)} of the {len(usable)} shapes in the cache")
    if corpus.selects:
        return select(cache, mine), notes
    if len(mine) == len(usable):
        return cache, notes
    return (first(cache, len(mine) * cache.poses) if usable[: len(mine)] == mine else select(cache, mine)), notes


def _lacking(missing: int, own: int) -> str:
    return f"note: {missing} of its {own} shapes are not in the cache; the experiment continues without them"


def _corpus_of(cache: Cache, corpus: CorpusConfig) -> Corpus | None:
    """The experiment's corpus, where it can be opened and the cache is of it."""
    try:
        source = open_corpus(corpus.uri, points=corpus.points)
    except MachineFault:
        raise
    except CorpusError:
        return None
    return source if is_of(source, corpus, cache.recipe) else None
