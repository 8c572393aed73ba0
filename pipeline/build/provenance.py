"""Versions of the software that makes a cache's records, which must agree on driver and workers.

The bytes of a shard follow from the recipe and from the code that ran. So workers with other code are refused, and the
log of a build records it; the recipe, which names the cache, does not. Light to import: no torch.
"""

import hashlib
import platform
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path

__all__ = ["differences", "software"]

# Each can change a number that is stored: rendering, the teacher's arithmetic, sampling, compression.
LIBRARIES = ("numba", "numcodecs", "numpy", "open_clip_torch", "torch")
ROOMS = ("cuda", "teacher_cache", "pipeline")
CODE = {".py", ".cu", ".json"}


@cache
def software() -> Mapping[str, str]:
    """Return the versions of python and of numerically relevant libraries, and a hash of this project's code."""
    found = {"python": ".".join(platform.python_version_tuple()[:2]), "code": _digest()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def differences(mine: Mapping[str, str], theirs: Mapping[str, str]) -> list[str]:
    """List the differences, one per line: ``torch: 2.8.0 here, 2.9.1 there``."""
    return [
        f"{name}: {mine.get(name, 'not known')[:16]} here, {theirs.get(name, 'not known')[:16]} there"
        for name in sorted({*mine, *theirs})
        if mine.get(name) != theirs.get(name)
    ]


def _digest() -> str:
    """Return the SHA-256 of the sources, by name."""
    root = Path(__file__).resolve().parents[2]
    digest = hashlib.sha256()
    for room in ROOMS:
        for path in sorted((root / room).rglob("*")):
            if path.suffix in CODE and path.is_file():
                content = hashlib.sha256(path.read_bytes()).hexdigest()
                digest.update(f"{path.relative_to(root).as_posix()} {content}\n".encode())
    return digest.hexdigest()
