"""Published sets as they were released: their counts, archives and checksums, where to get them, and common options."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.corpora.base import CorpusError
from pipeline.corpora.options import Options

__all__ = ["Archive", "Release", "ReleaseOptions"]

CHUNK = 1 << 24  # bytes of an archive hashed at a time


@dataclass(frozen=True)
class Archive:
    """A file that a release is downloaded as.

    name       of the file
    size       in bytes
    algorithm  of the digest, a name of hashlib
    digest     hex
    """

    name: str
    size: int
    algorithm: str
    digest: str

    def fault(self, path: Path, progress: Callable[[int], None] = lambda done: None) -> str:
        """Check a file of this name; -> its fault, or "". Reads all of it; `progress` receives the bytes read."""
        size = path.stat().st_size
        if size != self.size:
            return f"{path}: {size} bytes; the release has {self.size}. Download it again"
        digest, done = hashlib.new(self.algorithm), 0
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
                done += len(chunk)
                progress(done)
        if digest.hexdigest() != self.digest:
            found = digest.hexdigest()
            return f"{path}: {self.algorithm} {found}; the release has {self.digest}. Download it again"
        return ""


@dataclass(frozen=True, kw_only=True)
class Release:
    """A published set that was found, and how complete it is.

    name      what people call it
    folder    where it was found
    expected  shapes of the whole set by split, for the splits that were opened
    found     shapes by split
    get       how to get it, a sentence
    archives  what it is downloaded as, where checksums are known
    absent    shapes that its own lists name and that nobody has
    faults    other differences from the complete set, a sentence each
    """

    name: str
    folder: Path
    expected: Mapping[str, int]
    found: Mapping[str, int]
    get: str
    archives: tuple[Archive, ...] = ()
    absent: int = 0
    faults: tuple[str, ...] = field(default=())

    def problems(self) -> Iterator[str]:
        """Yield where this differs from the complete set, one line each."""
        for split, count in self.expected.items():
            found = self.found.get(split, 0)
            if found != count:
                yield f"{split}: {found:,} shapes, {count:,} in the release"
        yield from self.faults

    def check(self, uri: str) -> None:
        """Raise CorpusError, with how to get the rest, unless all of it is there."""
        problems = list(self.problems())
        if problems:
            lines = "\n  ".join(problems)
            raise CorpusError(
                f"{uri}: the {self.name} in {self.folder} differs from the release\n"
                f"  {lines}\n"
                f"  {self.get} With counts=any the files are read as a data set of their own."
            )

    def archives_beside(self) -> list[tuple[Archive, Path]]:
        """List the archives that still lie in the folder, or in one of the two above it."""
        places = (self.folder, self.folder.parent, self.folder.parent.parent)
        found = []
        for archive in self.archives:
            path = next((place / archive.name for place in places if (place / archive.name).is_file()), None)
            if path is not None:
                found.append((archive, path))
        return found


@dataclass(frozen=True, kw_only=True)
class ReleaseOptions:
    """The options that all published sets of clouds have: seed, pad, order and counts.

    seed          of the points that are drawn from a cloud
    repeat        a cloud of too few points is filled up with repeated ones, instead of being refused
    stored_order  the first points of each cloud instead of random ones
    official      a set that is not as it was released is refused when it is opened
    """

    seed: int
    repeat: bool
    stored_order: bool
    official: bool

    @classmethod
    def of(cls, options: Options, *, counts: str) -> "ReleaseOptions":
        """Read them; `counts` is the default of that option, "official" or "any"."""
        return cls(
            seed=options.integer("seed", 0, low=0),
            repeat=options.choice("pad", ("refuse", "repeat"), "refuse") == "repeat",
            stored_order=options.choice("order", ("random", "stored"), "random") == "stored",
            official=options.choice("counts", ("official", "any"), counts) == "official",
        )

    @property
    def identity(self) -> dict[str, Any]:
        """What of them determines the points, in a corpus' identity."""
        pad, order = "repeat" if self.repeat else "refuse", "stored" if self.stored_order else "random"
        return {"seed": self.seed, "pad": pad, "order": order}

    @property
    def drawing(self) -> dict[str, Any]:
        """The arguments of `FileCorpus` and `RowCorpus` that they give."""
        return {"seed": self.seed, "repeat": self.repeat, "stored_order": self.stored_order}
