"""One hand-made fault of one line, and the tests that should notice it."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ROOT", "Mutant", "Stale", "mutated"]

ROOT = Path(__file__).resolve().parents[2]


class Stale(Exception):
    """The text that a mutant replaces is not in its file exactly once."""


@dataclass(frozen=True)
class Mutant:
    """A replacement in one file.

    fault     what becomes wrong, in words; unique
    file      relative to the repository
    old, new  text that occurs once there, and what stands in its place
    tests     what pytest is given: files, node ids, -k; the fewest that should notice
    survives  why no test can notice, where that is so; empty: some test must
    """

    fault: str
    file: str
    old: str
    new: str
    tests: str
    survives: str = ""

    def key(self, root: Path = ROOT) -> str:
        """Names the mutant and the code and tests that it was tried on, so that a result stands until one changes."""
        digest = hashlib.sha256(repr(self).encode())
        for name in (self.file, *(word.split("::")[0] for word in self.tests.split() if word.startswith("tests/"))):
            path = root / name
            digest.update(path.read_bytes() if path.is_file() else b"")
        return digest.hexdigest()[:16]


def mutated(mutant: Mutant, root: Path = ROOT) -> str:
    """The text of its file with the fault in it. Raises Stale."""
    text = (root / mutant.file).read_text(encoding="utf-8")
    found = text.count(mutant.old)
    if found != 1:
        raise Stale(f"{mutant.fault}: {mutant.file} has {mutant.old!r} {found} times, not once; mend tests/mutants")
    return text.replace(mutant.old, mutant.new)
