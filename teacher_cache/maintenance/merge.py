"""Merge of caches of one recipe, each of other shapes, into one cache."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from teacher_cache.config import CacheConfig
from teacher_cache.errors import CacheError, RecipeMismatch
from teacher_cache.format.basis import basis_differences
from teacher_cache.format.records import TeacherRecord
from teacher_cache.location import Location, resolve
from teacher_cache.maintenance.rewrite import Rewritten, in_threads, in_turn, new_location, refilled, rewrite
from teacher_cache.maintenance.sources import Part, SourceReader, open_source, parts_of
from teacher_cache.reading.cache import Cache
from teacher_cache.writer import create_cache

__all__ = ["merge"]

SHOWN = 5  # ids in an error


def merge(
    sources: Sequence[str | os.PathLike[str]],
    root: str | os.PathLike[str],
    *,
    duplicates: Literal["refuse", "skip"] = "refuse",
    refill: bool = False,
    threads: int = 2,
    on_progress: Callable[[int, int], None] | None = None,
) -> Rewritten:
    """Merge the shapes of several finished caches of one recipe into one cache under `root`; the sources stay.

    sources      two or more, paths or URLs, in the order of their shapes in the new cache.
    root         folder, or URL, that holds caches; the new one has the name of the first source, so this must be
                 another root than any source's.
    duplicates   shapes that several sources hold: "refuse" them, or "skip" all but the first where every copy is the
                 same in every stored number. Copies that differ are refused in any case.
    refill       False: each shard of a source is one of the new cache's, as if that cache had grown by one source after
                 the other. True: shards are filled up again, as if it had been built at once.
    threads      shards in work at once; each holds the decoded records of one shard.
    on_progress  called with (shards done, shards in all), first before any work, in the calling thread; shards whose
                 duplicates are compared count too.

    The same sources in the same order give the same bytes. All poses of a shape stay in one shard. Label names are the
    longest list, of which every other must be the beginning. `planned` is the sources' sum, less what was skipped.
    An interrupted merge resumes when called again.

    Raises RecipeMismatch naming the settings that differ, CacheError for duplicates, for names of labels that do not
    agree and for a damaged source, ManifestError for a source that is not finished, ValueError for arguments.
    """
    if duplicates not in ("refuse", "skip"):
        raise ValueError(f"merge: duplicates = {duplicates!r} is neither refuse nor skip")
    if len(sources) < 2:
        raise ValueError(f"merge: {len(sources)} sources; expected two or more")
    caches = [open_source(source) for source in sources]
    first = caches[0]
    storage = CacheConfig.from_storage(dict(first.recipe.storage))
    for other in caches[1:]:
        _check_recipe(first, other)
    names = max((cache.label_names for cache in caches), key=len)
    for cache in caches:
        _check_labels(cache, names)
    target = new_location(root, first, first.recipe, storage)
    _check_apart(target, caches)
    parts = [part for place, cache in enumerate(caches) for part in parts_of(cache, place)]
    kept, copies = _first_of_each(parts, caches, first.poses, duplicates)
    if refill:
        shards = refilled(kept, shapes_per_shard=storage.shapes_per_shard, poses=first.poses)
    else:
        shards = in_turn(kept)
    tell = on_progress or (lambda done, total: None)
    total = len(copies) + len(shards)
    reader = SourceReader(caches)
    compared = 0
    tell(0, total)
    for _ in in_threads(lambda copy: _compare(copy, reader, caches, storage), copies, threads):
        compared += 1
        tell(compared, total)
    skipped = sum(len(copy.part.records) + len(copy.part.quarantined) for copy in copies)
    writer = create_cache(str(target), first.recipe, first.schema, storage, label_names=names, basis=first.basis)
    return rewrite(
        caches,
        shards,
        writer,
        planned=sum(cache.info().planned for cache in caches) - skipped,
        threads=threads,
        on_progress=lambda done, _: tell(compared + done, total),
        event="merge",
    )


@dataclass(frozen=True, kw_only=True)
class _Copies:
    """Records of one shard that an earlier source holds too; `others` are those, in the same order."""

    part: Part
    others: tuple[Part, ...]


def _first_of_each(
    parts: Sequence[Part], caches: Sequence[Cache], poses: int, duplicates: str
) -> tuple[list[Part], list[_Copies]]:
    """Return the parts without shapes that an earlier part has, and the copies left out. Raises CacheError."""
    seen: dict[str, tuple[Part, int]] = {}  # id of a shape: where it stands, and at which of the part's records
    refused: dict[str, Part] = {}
    kept, copies, found = [], [], []
    for part in parts:
        again: list[int] = []
        others: list[Part] = []
        for row in range(0, len(part.ids), poses):
            id = part.ids[row]
            _check_usable_in_both(id, part, refused.get(id), caches)
            if id in seen:
                earlier, at = seen[id]
                again.extend(range(row, row + poses))
                others.append(_rows(earlier, range(at, at + poses)))
                found.append((id, part, earlier))
            else:
                seen[id] = (part, row)
        refused_again = []
        for item in part.quarantined:
            _check_usable_in_both(item.id, part, seen.get(item.id, (None,))[0], caches)
            if item.id in refused:
                refused_again.append(item)
                found.append((item.id, part, refused[item.id]))
            else:
                refused[item.id] = part
        left = sorted(set(range(len(part.ids))) - set(again))
        rest = tuple(item for item in part.quarantined if item not in refused_again)
        if again or refused_again:
            copies.append(
                _Copies(part=replace(_rows(part, again), quarantined=tuple(refused_again)), others=tuple(others))
            )
        if left or rest:
            kept.append(replace(_rows(part, left), quarantined=rest))
    if found and duplicates == "refuse":
        lines = [f"{id!r} in {_where(part, caches)} and in {_where(other, caches)}" for id, part, other in found]
        more = [f"... and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
        raise CacheError(
            f"expected each shape in one source, found {len(found)} in several:\n  "
            + "\n  ".join([*lines[:SHOWN], *more])
            + "\n  Skip identical copies with duplicates = skip (i2p cache merge --duplicates skip)."
        )
    return kept, copies


def _rows(part: Part, rows: Sequence[int]) -> Part:
    """Return some of a part's records, without its quarantine."""
    return replace(
        part,
        records=tuple(part.records[row] for row in rows),
        ids=tuple(part.ids[row] for row in rows),
        quarantined=(),
    )


def _check_usable_in_both(id: str, part: Part, other: Part | None, caches: Sequence[Cache]) -> None:
    if other is not None:
        raise CacheError(
            f"shape {id!r} has a record in one of {_where(other, caches)} and {_where(part, caches)} and is "
            "quarantined in the other: one of the builds could not read it.\n"
            "  Build that source again from intact files."
        )


def _compare(copies: _Copies, reader: SourceReader, caches: Sequence[Cache], storage: CacheConfig) -> None:
    """Compare copies with their originals. Raises CacheError unless they agree in every stored number."""
    mine = reader.records(copies.part, storage)
    theirs = [record for other in copies.others for record in reader.records(other, storage)]
    places = [other for other in copies.others for _ in other.records]
    for a, b, other in zip(mine, theirs, places, strict=True):
        differing = list(_differences(a, b))
        if differing:
            raise CacheError(
                f"shape {a.id!r} differs between {_where(other, caches)} and {_where(copies.part, caches)}: "
                f"{', '.join(differing)}.\n"
                "  Only identical copies can be skipped; leave out one of the caches."
            )


def _differences(a: TeacherRecord, b: TeacherRecord) -> Iterator[str]:
    for name in ("id", "label"):
        if getattr(a, name) != getattr(b, name):
            yield name
    for name in ("points", "lo", "cell", "offset", "depth", "features", "saliency", "class_token"):
        one, two = getattr(a, name), getattr(b, name)
        if one is not None and one.tobytes() != two.tobytes():
            yield name


def _where(part: Part, caches: Sequence[Cache]) -> str:
    return f"{caches[part.source].path} (shard {part.shard})"


def _check_recipe(first: Cache, other: Cache) -> None:
    lines = first.recipe.differences(other.recipe)
    for name, here in first.schema.to_json().items():
        there = other.schema.to_json()[name]
        if here != there:
            lines.append(f"schema.{name}: {here} here, {there} there")
    lines += basis_differences(first.basis, other.basis)
    if not lines:
        return
    if all(line.startswith("storage.") for line in lines):
        remedy = "Convert one of them first (i2p cache convert)."
    else:
        remedy = "Only caches of the same recipe can be merged."
    raise RecipeMismatch(
        f"{other.path}: expected the recipe of {first.path} (here), found another (there):\n  "
        + "\n  ".join(lines)
        + f"\n  {remedy}"
    )


def _check_labels(cache: Cache, names: Sequence[str]) -> None:
    for label, (own, common) in enumerate(zip(cache.label_names, names, strict=False)):
        if own != common:
            raise CacheError(
                f"{cache.path}: label {label} is named {own!r}, in another source {common!r}; expected the same list "
                "of names, or a beginning of it.\n"
                "  Build the sources from corpora with the same classes."
            )


def _check_apart(target: Location, caches: Sequence[Cache]) -> None:
    for cache in caches:
        if resolve(target) == resolve(cache.path):
            raise CacheError(
                f"{target}: the merged cache would replace a source, because the recipe gives both the same path.\n"
                "  Choose another root; sources are never changed."
            )
