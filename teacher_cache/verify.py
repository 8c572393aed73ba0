"""Is every byte of a cache what was committed?"""

import hashlib
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from teacher_cache import layout
from teacher_cache.errors import CacheError
from teacher_cache.manifest import Manifest, ShardFile
from teacher_cache.reader import load_receipt

__all__ = ["Problem", "verify"]

_BLOCK = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is wrong: the file (relative to the cache), the shard it belongs to or None, and what is wrong."""

    file: str
    shard: int | None
    what: str

    def __str__(self) -> str:
        return f"{self.file}: {self.what}"


def verify(
    path: str | os.PathLike[str], *, threads: int = 4, on_progress: Callable[[int, int], None] | None = None
) -> list[Problem]:
    """Compare every file of a finished cache with what was committed; -> every problem found, [] when it is sound.

    threads      that read files at a time.
    on_progress  called with (files done, files in all) as files are checked.

    Finds flipped, cut, missing, swapped and additional files. The folders logs/ and tmp/ are no part of the cache.
    Raises OSError when a file cannot be read for reasons other than its absence.
    """
    root = Path(path)
    try:
        manifest = Manifest.decode((root / layout.MANIFEST).read_bytes(), str(root / layout.MANIFEST))
    except (FileNotFoundError, NotADirectoryError):
        return [Problem(file=layout.MANIFEST, shard=None, what="expected a manifest, found none")]
    except CacheError as error:
        return [Problem(file=layout.MANIFEST, shard=None, what=str(error))]
    description = manifest.description
    used = manifest.shards[-1].shard + 1 if manifest.shards else 0
    problems: list[Problem] = []
    fixed = layout.metadata_files(description, used) | {layout.RECIPE: description.encoded}
    problems += _check_fixed(root, fixed | {layout.MANIFEST: manifest.encoded})
    files: list[tuple[int, ShardFile]] = []
    known = {layout.MANIFEST, *fixed}
    for entry in manifest.shards:
        name = layout.receipt_path(entry.shard)
        known |= {name, *layout.shard_paths(description.storage, entry.shard)}
        try:
            receipt = load_receipt(root, description, entry)
        except CacheError as error:
            problems.append(Problem(file=name, shard=entry.shard, what=str(error)))
            continue
        files.extend((entry.shard, file) for file in receipt.files)
    with ThreadPoolExecutor(threads) as pool:
        for done, problem in enumerate(pool.map(lambda item: _check_file(root, *item), files), start=1):
            problems += [problem] if problem else []
            if on_progress is not None:
                on_progress(done, len(files))
    problems += [Problem(file=name, shard=None, what="not a file of this cache") for name in _others(root, known)]
    return problems


def _check_fixed(root: Path, expected: dict[str, bytes]) -> list[Problem]:
    problems = []
    for name, data in sorted(expected.items()):
        try:
            same = (root / name).read_bytes() == data
        except (FileNotFoundError, NotADirectoryError):
            problems.append(Problem(file=name, shard=None, what="expected a file here, found none"))
            continue
        if not same:
            what = "its contents are not what the manifest implies; running the build again writes it anew"
            problems.append(Problem(file=name, shard=None, what=what))
    return problems


def _check_file(root: Path, shard: int, expected: ShardFile) -> Problem | None:
    digest, size = hashlib.sha256(), 0
    try:
        with (root / expected.path).open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
                size += len(block)
    except (FileNotFoundError, NotADirectoryError):
        return Problem(file=expected.path, shard=shard, what="expected a file here, found none")
    if size != expected.bytes:
        return Problem(file=expected.path, shard=shard, what=f"expected {expected.bytes} bytes, found {size}")
    if digest.hexdigest() != expected.sha256:
        what = f"expected SHA-256 {expected.sha256}, found {digest.hexdigest()}"
        return Problem(file=expected.path, shard=shard, what=what)
    return None


def _others(root: Path, known: set[str]) -> Iterable[str]:
    for folder, folders, names in os.walk(root):
        relative = Path(folder).relative_to(root)
        if relative == Path("."):
            folders[:] = [name for name in folders if name not in layout.VOLATILE]
        folders.sort()
        for name in sorted(names):
            path = (relative / name).as_posix()
            if path not in known:
                yield path
