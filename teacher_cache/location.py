"""Where a cache is, as its users name it: a folder's path, or a URL."""

import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

__all__ = ["Location", "join", "localise", "parent", "resolve"]

Location = str | Path
"""A folder of this machine as a Path; a URL as text."""


def localise(location: str | os.PathLike[str]) -> Location:
    """A path as a Path, file:// URLs too; any other URL as it is, without a slash at its end."""
    text = os.fspath(location)
    if "://" not in text:
        return Path(text)
    if text.startswith("file://"):
        return Path(unquote(urlsplit(text).path))
    return text.rstrip("/")


def join(location: Location, name: str) -> Location:
    """The location of `name` below another."""
    return location / name if isinstance(location, Path) else f"{location}/{name}"


def parent(location: Location) -> Location:
    """The location that holds another."""
    return location.resolve().parent if isinstance(location, Path) else location.rpartition("/")[0]


def resolve(location: Location) -> Location:
    """The same location, as any working directory on this machine reaches it."""
    return location.resolve() if isinstance(location, Path) else location
