"""How the files of a corpus become its shapes: what reads them, how many points are drawn, what their parts mean."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.corpora.base import Inspection, Shape, ShapeError
from pipeline.corpora.entrance import MAX_PARTS
from pipeline.corpora.formats.geometry import Cloud, ReadOptions, Surface, sample_geometry
from pipeline.corpora.inspection import DIGEST_BYTES, inspect_cloud, inspect_mesh

__all__ = ["FileRules"]


@dataclass(frozen=True, kw_only=True)
class FileRules:
    """The rules of one corpus of files.

    points          of each shape.
    seed            of the points that are drawn.
    repeat          points of a cloud that has too few are repeated.
    label_names     names of the labels, by number.
    reading         what the user says about the files.
    part_names      of the parts that `reading.parts` asks for, over all files; empty where parts are numbers.
    up              the axis that is up in the files: "y" is turned to z, "z" and "file" stay as they are.
    stored_order    the first points of each cloud instead of random ones.
    parts_of_label  for each label the parts that its shapes may have; empty: any.
    """

    points: int
    seed: int
    repeat: bool
    label_names: tuple[str, ...] = ()
    reading: ReadOptions = field(default_factory=ReadOptions)
    part_names: tuple[str, ...] = ()
    up: str = "file"
    stored_order: bool = False
    parts_of_label: tuple[range, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return, as JSON, the rules that a corpus of the same files needs beside its names and number of points."""
        return {
            "columns": list(self.reading.columns),
            "parts": self.reading.parts,
            "read_up": self.reading.up,
            "up": self.up,
            "seed": self.seed,
            "repeat": self.repeat,
            "stored_order": self.stored_order,
            "parts_of_label": [[parts.start, parts.stop] for parts in self.parts_of_label],
        }

    @classmethod
    def from_json(
        cls, found: Mapping[str, Any], *, points: int, label_names: tuple[str, ...], part_names: tuple[str, ...]
    ) -> "FileRules":
        """Return the rules that `as_json` wrote. Raises KeyError, TypeError and ValueError for anything else."""
        reading = ReadOptions(
            columns=tuple(map(str, found["columns"])), parts=str(found["parts"]), up=str(found["read_up"])
        )
        ranges = tuple(range(int(start), int(stop)) for start, stop in found["parts_of_label"])
        if reading.up not in ("file", "y", "z") or found["up"] not in ("file", "y", "z"):
            raise ValueError("up is not file, y or z")
        if len(ranges) not in (0, len(label_names)):
            raise ValueError(f"{len(ranges)} ranges of parts for {len(label_names)} labels")
        return cls(
            points=points,
            seed=int(found["seed"]),
            repeat=bool(found["repeat"]),
            label_names=label_names,
            reading=reading,
            part_names=part_names,
            up=found["up"],
            stored_order=bool(found["stored_order"]),
            parts_of_label=ranges,
        )

    def shape(self, geometry: Surface | Cloud, *, id: str, label: int | None, split: str | None, source: str) -> Shape:
        """Make a shape of what was read. source names it in messages. Raises ShapeError."""
        points, parts = sample_geometry(
            geometry,
            count=self.points,
            seed=self.seed,
            id=id,
            source=source,
            repeat=self.repeat,
            stored_order=self.stored_order,
        )
        if self.up == "y":  # a quarter turn about x, exact: y up becomes z up
            points = np.stack([points[:, 0], -points[:, 2], points[:, 1]], axis=1)
        if parts is None and self.reading.parts:
            raise ShapeError(source, f"has no parts by parts={self.reading.parts}")
        if parts is not None:
            parts = self._numbered(parts, geometry.part_names, source)
            self._check_category(label, geometry, source)
        return Shape(id=id, points=points, label=label, part_labels=parts, split=split)

    def inspection(
        self,
        geometry: Surface | Cloud,
        contents: Sequence[bytes],
        *,
        id: str,
        label: int | None,
        split: str | None,
        source: str,
    ) -> Inspection:
        """Describe what was read from files of these contents, and check it as `shape` does. Raises ShapeError."""
        digest = hashlib.sha256()
        for content in contents:
            digest.update(f"{len(content)} ".encode())
            digest.update(content)
        self.shape(geometry, id=id, label=label, split=split, source=source)
        file, size = digest.digest()[:DIGEST_BYTES], sum(map(len, contents))
        if isinstance(geometry, Surface):
            return inspect_mesh(geometry, file=file, size=size)
        return inspect_cloud(geometry, file=file, size=size)

    def _numbered(self, parts: np.ndarray, names: Sequence[str], source: str) -> np.ndarray:
        """Map parts of one file [N] to numbers of the corpus' table, int16."""
        if names:
            number = {name: k for k, name in enumerate(self.part_names)}
            unknown = [name for name in names if name not in number]
            if unknown:
                held = ", ".join(self.part_names)[:80]
                raise ShapeError(source, f"has a part {unknown[0][:40]!r}, which is none of part_names = {held}")
            parts = np.array([number[name] for name in names])[parts]
        most = len(self.part_names) or MAX_PARTS
        if parts.min() < 0 or parts.max() >= most:
            raise ShapeError(source, f"part labels run from {parts.min()} to {parts.max()}; expected 0..{most - 1}")
        return parts.astype(np.int16)

    def _check_category(self, label: int | None, geometry: Surface | Cloud, source: str) -> None:
        """Raise ShapeError for a part of another category anywhere in the file, whichever points were drawn."""
        if not self.parts_of_label or label is None or geometry.parts is None:
            return
        own = self.parts_of_label[label]
        low, high = int(geometry.parts.min()), int(geometry.parts.max())
        if low < own.start or high >= own.stop:
            raise ShapeError(
                source,
                f"part labels run from {low} to {high}; a {self.label_names[label]} has {own.start} to "
                f"{own.stop - 1}. Does it lie in another category's folder?",
            )
