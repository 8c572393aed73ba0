"""Bounds on instanced geometry, by the bytes of a file: instances turn few bytes into any number of triangles."""

from dataclasses import dataclass, field

from pipeline.corpora.formats.geometry import Malformed

__all__ = ["FREE", "SHARE", "Allowance"]

FREE = 1_000_000  # triangles, vertices and points of any file: a small mesh may be placed ten thousand times
SHARE = 64  # more of each for each byte


@dataclass
class Allowance:
    """The geometry made out of a file so far, counted by kind.

    size  bytes of the file, and of those beside it that have been read.
    """

    size: int
    _spent: dict[str, int] = field(default_factory=dict)

    def spend(self, what: str, count: int) -> None:
        """Note that ``count`` more are about to be made. Raises Malformed where the bytes do not justify them."""
        total = self._spent[what] = self._spent.get(what, 0) + count
        most = FREE + SHARE * self.size
        if total > most:
            raise Malformed(
                f"has more than {most} {what}, too many for its {self.size} bytes ({FREE}, plus {SHARE} per byte, are "
                "allowed)"
            )
