"""``kind:location?key=value&key=value`` opens a corpus.

Percent escapes are decoded in the location and in the values (``%3F`` for a question mark in a path); ``~`` is the home
folder; a location may be a file: URL. This is the only list of kinds: a new one is a module with an ``open_...``
function and one ``case`` here.
"""

import os
import re
from pathlib import Path
from urllib.parse import unquote, unquote_to_bytes

from pipeline.config import MAX_POINTS
from pipeline.corpora.base import Corpus, CorpusError
from pipeline.corpora.check import MIN_DISTINCT
from pipeline.corpora.options import Options
from teacher_cache.errors import StorageError
from teacher_cache.location import Location, local_path, localise

__all__ = ["KINDS", "open_corpus", "place_of", "split_uris"]

KINDS = {
    "synthetic": "synthetic:?count=2000&seed=0",
    "folder": "folder:DIR",
    "npz": "npz:FILE",
    "modelnet40": "modelnet40:DIR?split=train",
    "shapenet55": "shapenet55:DIR?split=train",
    "scanobjectnn": "scanobjectnn:DIR?variant=obj_bg&split=train",
    "shapenetpart": "shapenetpart:DIR?split=trainval",
    "shards": "shards:DIR or shards:s3://bucket/folder",
    "fewshot": "fewshot:?train=URI&test=URI&way=5&shot=10&fold=0",
}


def open_corpus(uri: str, *, points: int) -> Corpus:
    """Open the corpus that ``uri`` names; every shape read from it has exactly ``points`` points.

    Raises CorpusError for a URI that is malformed or names a kind, an option or a place that does not exist. No shape
    is read.
    """
    if points < MIN_DISTINCT:
        raise CorpusError(f"points = {points}; a shape needs at least {MIN_DISTINCT} points")
    if points > MAX_POINTS:
        raise CorpusError(f"points = {points}; at most {MAX_POINTS} of one shape are stored")
    try:
        return _open(uri, points)
    except OSError as error:  # for a path that cannot even be examined; readers classify their own errors
        where = f" {os.fsdecode(error.filename)[:200]!a}" if isinstance(error.filename, str | bytes) else ""
        raise CorpusError(f"{uri}: cannot open{where}: {error.strerror or error}") from error


def _open(uri: str, points: int) -> Corpus:
    kind, location, options = _parse(uri)
    match kind:
        case "synthetic":
            from pipeline.corpora.kinds.synthetic import open_synthetic

            if location:
                raise CorpusError(f"{uri}: a synthetic corpus has no location, found {location!r}; write {KINDS[kind]}")
            return open_synthetic(options, points)
        case "folder":
            from pipeline.corpora.kinds.folder import open_folder

            return open_folder(_path(uri, kind), options, points)
        case "npz":
            from pipeline.corpora.kinds.npz import open_npz

            return open_npz(_path(uri, kind), options, points)
        case "modelnet40":
            from pipeline.corpora.kinds.modelnet40 import open_modelnet40

            return open_modelnet40(_path(uri, kind), options, points)
        case "shapenet55":
            from pipeline.corpora.kinds.shapenet55 import open_shapenet55

            return open_shapenet55(_path(uri, kind), options, points)
        case "scanobjectnn":
            from pipeline.corpora.kinds.scanobjectnn import open_scanobjectnn

            return open_scanobjectnn(_path(uri, kind), options, points)
        case "shapenetpart":
            from pipeline.corpora.kinds.shapenetpart import open_shapenetpart

            return open_shapenetpart(_path(uri, kind), options, points)
        case "shards":
            from pipeline.corpora.kinds.shards import open_shards

            return open_shards(_store(uri, location), options, points)
        case "fewshot":
            return _open_fewshot(uri, location, options, points)
    raise CorpusError(f"{uri}: {kind!r} is not a kind of corpus; the kinds are\n  " + "\n  ".join(KINDS.values()))


def _open_fewshot(uri: str, location: str, options: Options, points: int) -> Corpus:
    """A fold of stored pickles where a folder is named, else one drawn from other corpora."""
    if location:
        from pipeline.corpora.kinds.fold_pickles import open_fold

        return open_fold(_path(uri, "fewshot"), options, points)
    from pipeline.corpora.kinds.fewshot import open_episode

    train, test = options.text("train", ""), options.text("test", "")
    if not train:
        raise CorpusError(
            f"{uri}: no corpus to draw from; write {KINDS['fewshot']} (a & within a URI is %26), or give a folder of "
            "stored folds"
        )
    pools = [open_corpus(pool, points=points) for pool in (train, test) if pool]
    return open_episode(pools[0], pools[1] if test else None, options, points)


def split_uris(text: str) -> list[str]:
    """Split a list of URIs at commas; a URI may hold commas of its own (``formats=off,obj``).

    A comma separates where a kind and a colon follow; within a path write such a comma as ``%2C``.
    """
    return [uri for uri in re.split(rf",(?=(?:{'|'.join(KINDS)}):)", text) if uri]


def place_of(uri: str) -> Path | None:
    """Return the file or folder that a corpus' URI names, None if it names none. Raises CorpusError."""
    location = uri.partition(":")[2].partition("?")[0]
    if not location:
        return None
    try:
        local = local_path(location)  # decodes escapes by itself: decoded twice, %2520 would be another folder
    except StorageError as error:
        raise CorpusError(f"{uri}: {error}") from error
    if local is not None:
        return local
    if "://" in location:
        if uri.startswith("shards:"):
            return None  # behind a URL, it is at no place of this machine
        raise CorpusError(
            f"{uri}: expected a local path, found the URL {location}.\n"
            "  Such corpora are read from folders: copy it, mount the store, or pack it as `shards:`, which URLs hold."
        )
    path = Path(os.fsdecode(unquote_to_bytes(os.fsencode(location))))
    try:
        return path.expanduser()
    except RuntimeError as error:
        name = path.parts[0]
        raise CorpusError(
            f"{uri}: {name} is not the home folder of a user here; write ./{name} for that name"
        ) from error


def _parse(uri: str) -> tuple[str, str, Options]:
    kind, colon, rest = uri.partition(":")
    if not colon:
        raise CorpusError(
            f"{uri!r} is not a corpus; expected kind:location?key=value, one of\n  " + "\n  ".join(KINDS.values())
        )
    location, _, query = rest.partition("?")
    values: dict[str, str] = {}
    for pair in filter(None, query.split("&")):
        key, equals, value = pair.partition("=")
        if not equals:
            raise CorpusError(f"{uri}: option {pair!r} has no value; write {pair}=...")
        if key in values:
            raise CorpusError(f"{uri}: option {key} is given twice")
        values[key] = unquote(value)
    return kind, location, Options(uri, values)


def _store(uri: str, location: str) -> Location:
    """Return the folder or URL of shards."""
    place = place_of(uri)
    if place is None and not location:
        raise CorpusError(f"{uri}: no location; write {KINDS['shards']}")
    return localise(location) if place is None else place


def _path(uri: str, kind: str) -> Path:
    path = place_of(uri)
    if path is None:
        raise CorpusError(f"{uri}: no location; write {KINDS[kind]}")
    if not path.exists():
        raise CorpusError(f"{uri}: {path} does not exist")
    return path
