"""The shapes of an experiment: all of its corpus, or those that `corpus.only`, `take` and `share` select by id.

A cache is named by what makes a record, never by how many there are, so experiments with one recipe share it, and it
may hold more shapes than one of them needs. Each experiment builds, compares and trains on its own shapes only.
"""

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.config import CorpusConfig
from pipeline.corpora import Corpus
from pipeline.errors import BuildError
from teacher_cache.errors import StorageError
from teacher_cache.foreign import decode_text, misnomer
from teacher_cache.location import local_path
from teacher_cache.storage.atomic import read_regular

__all__ = ["OwnShapes", "listed_ids", "select_shapes"]

SHOWN = 3
MAX_LIST = 1 << 30  # bytes of a list file


@dataclass(frozen=True)
class OwnShapes:
    """The shapes of an experiment among those of its corpus.

    config   the settings that select them
    places   their ids, in the corpus' order, with their indices in it
    corpus   ids of all of its shapes, with their indices; the same mapping where the experiment uses all of them
    by_rule  the corpus' shapes are generated from their numbers: none can vanish, and a smaller corpus just has fewer
    """

    config: CorpusConfig
    places: Mapping[str, int]
    corpus: Mapping[str, int]
    by_rule: bool

    @classmethod
    def of(cls, corpus: Corpus, config: CorpusConfig, *, lacking: bool = False) -> "OwnShapes":
        """Select an experiment's shapes among those of its corpus.

        lacking  as in `select_shapes`. Raises BuildError for a selection that this corpus does not have.
        """
        ids = [corpus.id(index) for index in range(len(corpus))]
        everything = {id: index for index, id in enumerate(ids)}
        own = everything
        if config.selects:
            own = {ids[index]: index for index in select_shapes(ids, config, lacking=lacking).tolist()}
        return cls(config=config, places=own, corpus=everything, by_rule=bool(ids) and corpus.stamp(0) is None)

    def vanished(self, absent: Collection[str]) -> set[str]:
        """Return those of a cache's shapes missing from the corpus that are the experiment's and vanished."""
        if self.by_rule or not absent:
            return set()
        return self.with_absent(absent).intersection(absent)

    def with_absent(self, absent: Collection[str]) -> set[str]:
        """Return the shapes that the settings would select if some that the corpus lacks were there.

        Their positions are known where the corpus is sorted by id, as folders are. Elsewhere they count as its first,
        so that `take` never misses one that vanished. Generated shapes cannot vanish.
        """
        if self.by_rule or not absent:
            return set(self.places)
        if not self.config.selects:
            return {*self.corpus, *absent}
        ids, lost = list(self.corpus), sorted(absent)
        in_order = all(a < b for a, b in pairwise(ids))
        ids = sorted([*ids, *lost]) if in_order else lost + ids
        return {ids[index] for index in select_shapes(ids, self.config, lacking=True).tolist()}


def select_shapes(
    ids: Sequence[str], config: CorpusConfig, *, lacking: bool = False, where: str = "the corpus"
) -> NDArray[np.int64]:
    """Return the indices of the shapes that the settings select, ascending, [n] int64.

    ids      unique, in the corpus' order.
    lacking  the list may name others, and there may be fewer than `take`.
    where    the shapes are, for messages.

    `only` applies first, then `take` to what is left, then `share`. A share is its number of shapes, rounded, at least
    one, whose hashes of (share_seed, id) are smallest: so shares of one seed are nested, and whether a shape is in one
    does not depend on the corpus' order. Raises BuildError naming the missing ids. O(n log n).
    """
    chosen = np.arange(len(ids), dtype=np.int64)
    if config.only:
        named = listed_ids(config.only)
        if unknown := [] if lacking else sorted(named.difference(ids)):
            raise BuildError(
                f"corpus.only = {config.only} names {_count(len(unknown))} that {where} does not have: "
                f"{_first_few(unknown)}.\n"
                "  Remove them from the list, or restore their files."
            )
        chosen = np.array([index for index, id in enumerate(ids) if id in named], np.int64)
    if config.take:
        if config.take > chosen.size and not lacking:
            raise BuildError(
                f"corpus.take = {config.take} is more than the {_count(chosen.size)} of "
                f"{'corpus.only' if config.only else where}"
            )
        chosen = chosen[: config.take]
    if config.share < 1 and chosen.size:
        keys = np.array([_key(config.share_seed, ids[index]) for index in chosen.tolist()], np.uint64)
        smallest = np.argsort(keys, kind="stable")[: max(1, round(config.share * chosen.size))]
        chosen = chosen[np.sort(smallest)]
    if not chosen.size and not lacking:
        raise BuildError(f"corpus.only = {config.only or '(none)'} leaves no shape of {where}")
    return chosen


def _key(seed: int, id: str) -> int:
    digest = hashlib.blake2b(f"{seed}\0{id}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def listed_ids(name: str) -> set[str]:
    """Read the ids in a list file, one per line, in any order, repeats allowed. Raises BuildError."""
    try:
        data = read_regular(local_path(name) or Path(name).expanduser(), MAX_LIST)
    except (OSError, RuntimeError, StorageError) as error:
        raise BuildError(f"corpus.only = {name}: expected a file with one id per line; {_why(error)}") from error
    found = misnomer(data) if len(data) <= MAX_LIST else f"is larger than {MAX_LIST} bytes"
    if found is not None:
        raise BuildError(f"corpus.only = {name}: {found}; expected a file with one id per line")
    try:
        text = decode_text(data)
    except ValueError as error:
        raise BuildError(f"corpus.only = {name}: {error}") from error
    ids = {line for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n") if line.strip()}
    if not ids:
        raise BuildError(f"corpus.only = {name}: contains no ids; expected one per line")
    return ids


def _why(error: Exception) -> str:
    return str(error.strerror or error) if isinstance(error, OSError) else str(error)


def _count(number: int) -> str:
    return f"{number} shape{'' if number == 1 else 's'}"


def _first_few(ids: Iterable[str]) -> str:
    found = list(ids)
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return ", ".join(map(repr, found[:SHOWN])) + more
