"""Point Cloud Data files."""

from pathlib import Path

import numpy as np

from pipeline.corpora.formats.geometry import Cloud, Malformed, ReadOptions

__all__ = ["read_pcd"]


def read_pcd(data: bytes, path: Path, options: ReadOptions) -> Cloud:
    """Point Cloud Data, DATA ascii or binary, fields x, y and z among others."""
    header: dict[str, list[str]] = {}
    at = 0
    while "DATA" not in header:
        end = data.find(b"\n", at)
        if end < 0 or end > 65536:
            raise Malformed("has no PCD header (VERSION ... DATA)")
        words = data[at:end].decode("latin-1").split("#", 1)[0].split()
        if words:
            header[words[0].upper()] = words[1:]
        at = end + 1
    try:
        fields, form = header["FIELDS"], header["DATA"][0].lower()
        counts = [int(text) for text in header.get("COUNT", ["1"] * len(fields))]
        points = int(header["POINTS"][0]) if "POINTS" in header else int(header["WIDTH"][0]) * int(header["HEIGHT"][0])
        kinds = [
            {"F": "f", "I": "i", "U": "u"}[kind.upper()] + str(int(size))
            for kind, size in zip(header["TYPE"], header["SIZE"], strict=True)
        ]
        record = np.dtype(
            [
                (f"{k} {name}", "<" + kind, (count,))
                for k, (name, kind, count) in enumerate(zip(fields, kinds, counts, strict=True))
            ]
        )
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise Malformed(f"the PCD header is incomplete or contradicts itself: {error}") from error
    if points < 0 or min(counts) < 1 or not {"x", "y", "z"} <= set(fields):
        raise Malformed(f"fields are {' '.join(fields)[:60]}, points {points}; expected x, y and z")
    where = [fields.index(axis) for axis in "xyz"]
    if form == "binary":
        if at + points * record.itemsize > len(data):
            raise Malformed(f"the header promises {points} points, the file ends before; it is truncated")
        table = np.frombuffer(data, dtype=record, count=points, offset=at)
        return Cloud(np.stack([table[f"{k} {fields[k]}"][:, 0].astype(np.float64) for k in where], axis=-1))
    if form != "ascii":
        raise Malformed(f"DATA is {form[:30]!r}; ascii and binary are read (pcl_convert_pcd_ascii_binary converts)")
    lines = [line for line in data[at:].decode("latin-1").splitlines() if line.strip()]
    if len(lines) < points:
        raise Malformed(f"the header promises {points} points, {len(lines)} follow; the file is truncated")
    columns = [sum(counts[:k]) for k in where]
    try:
        return Cloud(
            np.loadtxt(lines[:points], usecols=columns, ndmin=2, comments=None) if points else np.empty((0, 3))
        )
    except ValueError as error:
        raise Malformed(f"a line is not made of numbers: {error}") from error
