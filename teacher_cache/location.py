"""Locations of caches as users name them: a folder's path, or a URL."""

import os
import re
from pathlib import Path
from urllib.parse import unquote_to_bytes

from teacher_cache.errors import StorageError

__all__ = ["Location", "join", "local_path", "localise", "parent", "resolve"]

Location = str | Path
"""A folder of this machine as a Path; a URL as text."""

_FILE = re.compile(r"(?:file|local):", re.IGNORECASE)  # fsspec's two words for this machine


def localise(location: str | os.PathLike[str]) -> Location:
    """Return a path or file: URL as a Path; any other URL unchanged, without a trailing slash.

    Raises StorageError for a file: URL that names another machine or nothing.
    """
    text = os.fspath(location)
    local = local_path(text)
    if local is not None:
        return local
    return Path(text) if "://" not in text else text.rstrip("/")


def local_path(text: str) -> Path | None:
    """Return the path that a file: URL names, in any form in use; None for other text.

    ``file:///a/b``, ``file:/a/b``, ``file://localhost/a/b``, and relative to the working folder ``file:a/b``. Percent
    escapes are decoded to whatever bytes they stand for; invalid ones stay. ``#`` and ``?`` are ordinary characters of
    a name: a file has neither fragment nor query. Raises StorageError.
    """
    found = _FILE.match(text)
    if found is None:
        return None
    rest = text[found.end() :]
    if rest.startswith("//"):
        host, slash, path = rest[2:].partition("/")
        if host.lower() not in ("", "localhost", "127.0.0.1", "[::1]"):
            raise StorageError(
                f"{text}: expected a file: URL of this machine, found one of {host!r}.\n"
                f"  Write {found[0]}///{host}/... for an absolute path, {found[0]}{host}/... for a relative one."
            )
        rest = slash + path
    if not rest:
        raise StorageError(f"{text}: expected a path after {found[0]}, found none.")
    return Path(os.fsdecode(unquote_to_bytes(os.fsencode(rest))))


def join(location: Location, name: str) -> Location:
    """Return the location of `name` below another."""
    return location / name if isinstance(location, Path) else f"{location}/{name}"


def parent(location: Location) -> Location:
    """Return the location that holds another."""
    return location.resolve().parent if isinstance(location, Path) else location.rpartition("/")[0]


def resolve(location: Location) -> Location:
    """Return the location in a form independent of the working directory."""
    return location.resolve() if isinstance(location, Path) else location
