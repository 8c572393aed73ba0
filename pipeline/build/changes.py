"""Changes of a corpus since its cache was built: shapes of an experiment that changed, came or went.

The authority is a hash of what each shape was made from, which receipts hold (`Corpus.fingerprint`). The fast path is a
digest of sizes and times of a shard's files (`Corpus.stamp`), kept in logs/ where no guarantee depends on it: while it
is unchanged, the shard's files are not read. Otherwise (after a touch or a copy, for instance) the hashes decide.
"""

import hashlib
import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from pipeline.build.selection import OwnShapes
from pipeline.corpora import Corpus, ShapeError
from pipeline.corpora.faults import patiently
from pipeline.errors import BuildError
from teacher_cache import CacheError
from teacher_cache.format.manifest import Receipt
from teacher_cache.location import join
from teacher_cache.storage.base import Storage

__all__ = [
    "STAMPS",
    "Changes",
    "Stamps",
    "compare_corpus",
    "made_of",
    "refuse_stale",
    "settled",
    "shapes_in",
    "stamps_digest",
]

logger = logging.getLogger(__name__)

STAMPS = "logs/stamps.json"  # of a cache
SHOWN = 3
MANY = 1000  # shapes; reading more than this is announced
_MAX_STAMPS = 1 << 28  # bytes; a line a shard takes about 80
_SETTLED = 2 * 10**9  # ns; two writes closer than a file system's clock ticks (FAT: 2 s) leave one time
_SAVED_EVERY = 30.0  # seconds


def made_of(corpus: Corpus, index: int) -> str:
    """Return the fingerprint of a shape; for an unreadable one, a hash of the reason. Raises MachineFault."""
    try:
        return patiently(lambda: corpus.fingerprint(index), corpus.source(index))
    except ShapeError as error:
        return hashlib.sha256(f"unreadable: {error.reason}".encode("utf-8", "surrogatepass")).hexdigest()


def settled(stamp: str | None) -> str | None:
    """Return a stamp taken just now, or None if a file is so new that it may change again and keep its stamp."""
    if stamp is None:
        return None
    changed = [part.partition(":")[0] for part in stamp.split()]
    if not all(word.isdecimal() for word in changed):  # a file that cannot be examined
        return None
    return stamp if max(map(int, changed), default=0) < time.time_ns() - _SETTLED else None


def stamps_digest(stamps: Iterable[tuple[str, str | None]]) -> str:
    """Hash (shape id, stamp) pairs, in their order; "" if a shape has no stamp."""
    digest = hashlib.sha256()
    for id, stamp in stamps:
        if stamp is None:
            return ""
        digest.update(f"{id}\0{stamp}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


class Stamps:
    """logs/stamps.json: by shard, the receipt it belongs to and the digest of its files' stamps.

    An experiment that uses only some of a shard's shapes examines only these; the result is keyed by the shard and the
    hash of their ids. If the file is lost or damaged, the corpus is read once more, and nothing else happens. Several
    builders may write it: the last one wins.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._known: dict[str, list[str]] = {}
        try:
            data = storage.read(STAMPS)
            known = json.loads(data) if len(data) <= _MAX_STAMPS else {}
            self._known = {
                shard: pair
                for shard, pair in known.items()
                if isinstance(pair, list) and len(pair) == 2 and all(isinstance(part, str) for part in pair)
            }
        except FileNotFoundError:
            pass
        except (ValueError, AttributeError, RecursionError):
            logger.info("%s cannot be read; files are compared by content", join(storage.location, STAMPS))
        self._saved = dict(self._known)
        self._saved_at = time.monotonic()

    def vouch_for(self, receipt: Receipt, digest: str, some: Sequence[str] | None = None) -> bool:
        """Check that this shard's files, or those of some of its shapes, had this digest when last compared."""
        return bool(digest) and self._known.get(_key(receipt, some)) == [receipt.sha256, digest]

    def note(self, receipt: Receipt, digest: str, some: Sequence[str] | None = None) -> None:
        """Remember how a shard's files look, or those of some of its shapes, whose content is what the receipt says."""
        if digest:
            self._known[_key(receipt, some)] = [receipt.sha256, digest]

    def save(self, *, now: bool = True) -> None:
        """Write new notes, if any; if nothing can be written, the next build compares again.

        now  False: only if the last time is a while ago, so that a killed build does not read all shapes again.
        """
        if self._known == self._saved or (not now and time.monotonic() - self._saved_at < _SAVED_EVERY):
            return
        self._saved_at = time.monotonic()
        try:
            self._storage.write_documents({STAMPS: json.dumps(self._known, sort_keys=True).encode()})
        except (OSError, CacheError) as error:
            logger.info("%s cannot be written: %s", join(self._storage.location, STAMPS), error)
        self._saved = dict(self._known)


def _key(receipt: Receipt, some: Sequence[str] | None) -> str:
    if some is None:
        return str(receipt.shard)
    ids = hashlib.sha256("\n".join(some).encode("utf-8", "surrogatepass")).hexdigest()
    return f"{receipt.shard}:{ids[:16]}"


@dataclass(frozen=True, kw_only=True)
class Changes:
    """Differences between an experiment's shapes and what the committed shards of its cache were made from.

    changed  ids of shapes that are in both, and made from something else now, those in quarantine excepted
    gone     ids of shapes that the corpus no longer has
    came     shapes that no committed shard holds
    same     shapes that are in both, without a sign of change
    unknown  shapes in shards without fingerprints, as 0.1.0 wrote them: changes cannot be detected
    shards   that hold changed or gone shapes
    others   shapes that the cache holds for other experiments; they are not examined
    suspects by shard, the quarantined ids whose source has changed, or for which that is unknown
    """

    changed: tuple[str, ...]
    gone: tuple[str, ...]
    came: int
    same: int
    unknown: int
    shards: tuple[int, ...]
    others: int = 0
    suspects: Mapping[int, tuple[str, ...]] = field(default_factory=dict)

    @property
    def stale(self) -> bool:
        """True when records of the cache do not match the corpus as it is."""
        return bool(self.changed or self.gone)

    def lines(self) -> list[str]:
        """List the differences for the user, one per line."""
        lines = []
        for one, more, ids in (
            ("changed since the cache was built", "changed since the cache was built", self.changed),
            ("is no longer in the corpus", "are no longer in the corpus", self.gone),
        ):
            if ids:
                shown = ", ".join(map(repr, ids[:SHOWN])) + (
                    f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else ""
                )
                lines.append(f"{_count(len(ids), 'shape')} {one if len(ids) == 1 else more}: {shown}")
        if lines and self.came:
            lines.append(f"{_count(self.came, 'shape')} {'is' if self.came == 1 else 'are'} new")
        if lines and not self.same:
            lines.append("all of its shapes differ: is this another corpus under the same name?")
        return lines


def compare_corpus(
    corpus: Corpus,
    own: OwnShapes,
    receipts: Mapping[int, Receipt],
    stamps: Stamps,
    *,
    poses: int = 1,
    content: bool = False,
    threads: int = 1,
) -> Changes:
    """Compare the shapes of an experiment with the committed shards of its cache.

    own      of the corpus. Other shapes in the cache are not examined.
    poses    records of each shape; they are adjacent.
    content  read and hash every file, not only those whose size or time differs.
    threads  that read.

    O(shapes) stat calls where nothing changed. Raises MachineFault.
    """
    places = own.places
    changed: list[str] = []
    gone: list[str] = []
    shards: list[int] = []
    suspects: dict[int, tuple[str, ...]] = {}
    held = others = unknown = read = 0
    vanished = own.vanished(_absent(own, receipts, poses))
    with ThreadPoolExecutor(max(1, threads), thread_name_prefix="compare") as pool:
        for shard in sorted(receipts):
            receipt = receipts[shard]
            refused = {item.id for item in receipt.quarantined}
            here = shapes_in(receipt, poses)
            ours = sum(id in places for id in here)
            lost = [id for id in here if id in vanished]
            held += ours
            others += len(here) - ours - len(lost)
            gone += lost
            known = [(id, sha256) for id, sha256 in receipt.shapes if id in places]
            hashed = {id for id, _ in known}
            unknown += sum(id in places and id not in hashed for id in receipt.ids[::poses])
            looks = stamps_digest((id, settled(corpus.stamp(places[id]))) for id, _ in known) if known else ""
            some = None if len(known) == len(receipt.shapes) else [id for id, _ in known]
            odd: list[str] = []
            if content or not stamps.vouch_for(receipt, looks, some):
                # Where there are no files the content is a hash of settings, and as cheap as looking at them.
                files = len(known) if known and corpus.stamp(places[known[0][0]]) is not None else 0
                read += files
                if read >= MANY > read - files:
                    logger.warning(
                        "comparing the content of many files, because the cache does not know their size and time"
                    )
                now = pool.map(lambda id: made_of(corpus, places[id]), [id for id, _ in known])
                odd = [id for (id, then), found in zip(known, now, strict=True) if found != then]
            stale = [id for id in odd if id not in refused]
            same = {id for id, _ in known}.difference(odd)
            if doubtful := tuple(item.id for item in receipt.quarantined if item.id in places and item.id not in same):
                suspects[shard] = doubtful
            if not stale and not lost and known:
                stamps.note(receipt, looks, some)
            changed += stale
            if stale or lost:
                shards.append(shard)
    return Changes(
        changed=tuple(changed),
        gone=tuple(gone),
        came=len(places) - held,
        same=held - len(changed),
        unknown=unknown,
        shards=tuple(shards),
        others=others,
        suspects=suspects,
    )


def shapes_in(receipt: Receipt, poses: int) -> list[str]:
    """Ids of the shapes of a shard, those in quarantine last."""
    return [*receipt.ids[::poses], *(item.id for item in receipt.quarantined)]


def _absent(own: OwnShapes, receipts: Mapping[int, Receipt], poses: int) -> list[str]:
    """Shapes of the cache that the corpus does not have."""
    return [id for receipt in receipts.values() for id in shapes_in(receipt, poses) if id not in own.corpus]


def refuse_stale(changes: Changes, location: object) -> None:
    """Raise BuildError if records of the cache no longer match the corpus."""
    if changes.stale:
        lines = "\n  ".join(changes.lines())
        raise BuildError(
            f"{location}: the cache no longer matches this corpus:\n"
            f"  {lines}\n"
            f"  Rebuild {_count(len(changes.shards), 'shard')} with --changed rebuild (build.changed), restore the "
            "old files, or build into another cache.root."
        )


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
