"""Clouds as lines of numbers: XYZ, PTS, TXT, CSV."""

from pathlib import Path

import numpy as np

from pipeline.corpora.formats.geometry import Cloud, Malformed, ReadOptions

__all__ = ["read_text"]


def read_text(data: bytes, path: Path, options: ReadOptions) -> Cloud:
    """Lines of numbers between spaces, tabs, commas or semicolons; ``#`` starts a comment; a first line of one number
    (a count) is skipped.
    """
    if b"\0" in data:
        raise Malformed("is binary; expected lines of numbers")
    text = data.decode("latin-1").translate({ord(","): " ", ord(";"): " "})
    lines = [line for line in (raw.split("#", 1)[0] for raw in text.splitlines()) if line.strip()]
    promised = None
    if lines and len(lines[0].split()) == 1 and lines[0].strip().isdecimal() and len(lines[0]) < 20:
        promised = int(lines.pop(0))
    if not lines:
        raise Malformed("holds no lines of numbers")
    if promised is not None and promised != len(lines):
        raise Malformed(f"the first line promises {promised} points, {len(lines)} follow")
    width = len(lines[0].split())
    if width < 3:
        raise Malformed(f"the first line has {width} columns; expected at least 3")
    try:
        return Cloud(
            np.loadtxt(lines, ndmin=2, comments=None)[:, :3]
        )  # every line must have as many columns as the first
    except ValueError as error:
        raise Malformed(f"a line is not {width} numbers: {error}") from error
