"""Meshes placed by a scene, joined to one surface."""

from dataclasses import dataclass, field

import numpy as np

from pipeline.corpora.formats.geometry import Malformed, Surface

__all__ = ["MAX_PLACED", "MAX_TRIANGLES", "Placed"]

MAX_TRIANGLES = 30_000_000  # after instancing, which can make any number of a few bytes
MAX_PLACED = 1_000_000  # meshes, counted as often as they are placed


@dataclass
class Placed:
    """The meshes placed so far; faces index the vertices of everything before.

    parts  whether the owners become parts.
    """

    parts: bool = False
    notes: dict[str, int] = field(default_factory=dict)
    _vertices: list[np.ndarray] = field(default_factory=list)
    _faces: list[np.ndarray] = field(default_factory=list)
    _owners: list[tuple[str, int]] = field(default_factory=list)
    _count: int = 0
    _triangles: int = 0

    def note(self, reason: str, count: int) -> None:
        if count:
            self.notes[reason] = self.notes.get(reason, 0) + count

    def add(self, vertices: np.ndarray, faces: np.ndarray, owner: str) -> None:
        """Add a mesh: vertices [M, 3] float64 in the scene, faces [F, 3] int64 into them, and its owner.

        Raises Malformed for a face of a vertex that does not exist, and for implausible sizes.
        """
        self._triangles += len(faces)
        if self._triangles > MAX_TRIANGLES or len(self._faces) >= MAX_PLACED:
            raise Malformed(f"places more than {MAX_TRIANGLES} triangles or {MAX_PLACED} meshes")
        if faces.size and (faces.min() < 0 or faces.max() >= len(vertices)):
            raise Malformed(
                (f"a face of {owner!r} refers to vertex {int(faces.max())}; there are {len(vertices)} vertices")[:200]
            )
        self._vertices.append(vertices)
        self._faces.append(faces + self._count)
        self._owners.append((owner, len(faces)))
        self._count += len(vertices)

    def surface(self) -> Surface:
        """Return the joined surface. Raises Malformed if it is empty."""
        if not self._triangles:
            only = ", ".join(f"{count} {reason}" for reason, count in self.notes.items())
            raise Malformed(f"its visible scene has no triangles{f' ({only})' if only else ''}")
        names = tuple(dict.fromkeys(name for name, _ in self._owners)) if self.parts else ()
        number = {name: k for k, name in enumerate(names)}
        return Surface(
            np.concatenate(self._vertices),
            np.concatenate(self._faces).astype(np.int64, copy=False),
            parts=np.concatenate([np.full(n, number[name]) for name, n in self._owners]) if self.parts else None,
            part_names=names,
            notes=self.notes,
        )
