"""The settings that determine a cache's bytes. Their hash names the cache; its manifest holds them in full."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from teacher_cache.config import CacheConfig
from teacher_cache.documents import canonical, plain
from teacher_cache.errors import ManifestError, UnsupportedVersion
from teacher_cache.location import Location, join, localise

__all__ = ["FORMAT_VERSION", "Recipe", "cache_directory"]

FORMAT_VERSION = 1
_PARTS = ("corpus", "projection", "teacher", "storage")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The settings a cache was made from, as JSON values (tuples become lists).

    corpus          what determines a shape's bytes; never how many shapes there are, so that a cache can grow.
    projection      how a shape became images.
    teacher         architecture, hash of the weights, precision.
    storage         how records are stored: ``CacheConfig.storage()``.
    format_version  version of the format, docs/format.md.

    Raises TypeError for values that JSON cannot hold, ValueError for NaN.
    """

    corpus: Mapping[str, Any]
    projection: Mapping[str, Any]
    teacher: Mapping[str, Any]
    storage: Mapping[str, Any]
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        for part in _PARTS:
            object.__setattr__(self, part, plain(getattr(self, part), part))
        canonical(self.to_json())

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the canonical JSON, 64 hexadecimal digits."""
        return hashlib.sha256(canonical(self.to_json())).hexdigest()

    def to_json(self) -> dict[str, Any]:
        return {"format_version": self.format_version} | {part: dict(getattr(self, part)) for part in _PARTS}

    @classmethod
    def from_json(cls, value: Any, where: str = "recipe") -> "Recipe":
        """Parse the recipe from a JSON object. Raises ManifestError, UnsupportedVersion."""
        if not isinstance(value, dict):
            raise ManifestError(f"{where}: expected an object, found {type(value).__name__}")
        version = value.get("format_version")
        if type(version) is not int or version != FORMAT_VERSION:
            raise UnsupportedVersion(
                f"{where}: format_version is {version!r}; this program reads version {FORMAT_VERSION}.\n"
                "  Read the cache with the version of this program that wrote it, or build it again."
            )
        wrong = [part for part in _PARTS if not isinstance(value.get(part), dict)]
        if wrong or set(value) != {"format_version", *_PARTS}:
            raise ManifestError(f"{where}: expected objects {', '.join(_PARTS)}, found keys {sorted(value)}")
        try:
            return cls(format_version=version, **{part: value[part] for part in _PARTS})
        except (TypeError, ValueError, RecursionError) as error:
            raise ManifestError(f"{where}: {error}") from error

    def differences(self, other: "Recipe") -> list[str]:
        """List one line per setting that differs: ``teacher.precision: "float32" here, "float16" there``."""
        return list(_differences(self.to_json(), other.to_json(), ""))


def cache_directory(config: CacheConfig, recipe: Recipe, default_name: str = "cache") -> Location:
    """Return ``<root>/<name>-<first 12 digits of the recipe's hash>``.

    The name, where not set, comes from the corpus.
    """
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", config.name or default_name).strip("-.") or "cache"
    return join(localise(config.root), f"{name}-{recipe.hash[:12]}")


def _differences(here: Any, there: Any, path: str) -> list[str]:
    if isinstance(here, dict) and isinstance(there, dict):
        lines = []
        for key in sorted(set(here) | set(there)):
            below = f"{path}.{key}" if path else key
            if key not in here:
                lines.append(f"{below}: not set here, {json.dumps(there[key])} there")
            elif key not in there:
                lines.append(f"{below}: {json.dumps(here[key])} here, not set there")
            else:
                lines.extend(_differences(here[key], there[key], below))
        return lines
    # 1 == True == 1.0 in Python, but their JSON, and so the hash, differs
    same = canonical(here) == canonical(there)
    return [] if same else [f"{path}: {json.dumps(here)} here, {json.dumps(there)} there"]
