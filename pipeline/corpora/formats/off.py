"""Object File Format. Its description: Geomview's manual, "OFF Files" (geomview.org/docs/html/OFF.html)."""

import re
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.corpora.formats.geometry import Cloud, Malformed, ReadOptions, Surface
from pipeline.corpora.formats.polygons import MAX_CORNERS, cut_polygons
from pipeline.corpora.formats.records import Binary, Element, Property, by_length, locate, whole
from pipeline.corpora.formats.text import decode_text
from pipeline.corpora.formats.tokens import Tokens, read_tokens

__all__ = ["read_off"]

_LEADING = re.compile(rb"(?:\s|#[^\r\n]*)*+")
_WORD = re.compile(rb"((?:ST|[CN4n])*OFF|(?:st|[c4])*off)(?=[\s\d#]|$)")  # "noff" might be NOFF or nOFF
_BINARY = re.compile(rb"[ \t]*BINARY[ \t]*(?:\r\n|\n|\r)")
_COMMENT = re.compile(rb"#[^\r\n]*")
_COLOURS = (0, 1, 3, 4)  # numbers of a face's colour: none, an index into a map, red, green, blue, alpha


class _Head(NamedTuple):
    """Layout of the vertices, from the keyword.

    widths   numbers of each, those that are usual first: colours are of four, or of three as many write them.
    counts   words before the numbers of vertices, faces and edges.
    """

    word: str
    widths: tuple[int, ...]
    counts: int


class _Found(NamedTuple):
    """vertices [M, 3] float64, and polygons by their number of corners, [F, k] int64 each."""

    vertices: np.ndarray
    polygons: list[np.ndarray]


def read_off(data: bytes, path: Path, options: ReadOptions) -> Surface | Cloud:
    """Read a stream of numbers, with or without a keyword.

    The keyword is OFF with ST, C, N before it, also directly before the counts as in ModelNet. A file without faces is
    a cloud.

    Where every vertex and face is a line of its own, lines show where a face ends and its colour begins, which is
    ignored. Elsewhere the file must have only one reading, to its last number, with or without such colours.
    """
    if options.parts:
        raise Malformed(f"parts={options.parts} was requested; an OFF has none")
    data = _plain(data)
    leading = _LEADING.match(data)
    start = leading.end() if leading else 0
    match = _WORD.match(data, start)
    head = _head(match[1].decode() if match else "")
    start = match.end() if match else start
    binary = _BINARY.match(data, start)
    if binary and match:
        found = _read_binary(data, binary.end(), head)
    else:
        text = data[:start] + _COMMENT.sub(b"", data[start:]) if b"#" in data else data
        found = _read_text(read_tokens(text, start), head)
    if not found.polygons:
        return Cloud(found.vertices)
    cut = cut_polygons(found.vertices, found.polygons)
    return Surface(found.vertices, cut.faces, notes=cut.notes)


def _plain(data: bytes) -> bytes:
    """Return the file without its byte order mark, in a single-byte encoding."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return decode_text(data).encode("latin-1", "replace")
    return data.removeprefix(b"\xef\xbb\xbf")


def _head(word: str) -> _Head:
    before = re.findall("ST|[CN4n]", (word.upper() if word.islower() else word).removesuffix("OFF"))
    if len(set(before)) < len(before):
        raise Malformed(f"starts with {word[:20]!r}; expected OFF with ST, C, N, 4 and n at most once before it")
    if "4" in before:
        raise Malformed(f"{word} has vertices of four coordinates; expected three")
    width = 3 + 2 * ("ST" in before) + 3 * ("N" in before)
    return _Head(word, (width + 4, width + 3) if "C" in before else (width,), 1 if "n" in before else 0)


def _check_dimension(head: _Head, dimension: float) -> None:
    if dimension != 3:
        raise Malformed(f"{head.word} has vertices of {dimension:g} coordinates; expected 3")


def _read_binary(data: bytes, at: int, head: _Head) -> _Found:
    """Read 32-bit big-endian integers and floats; a face is its corners, then the numbers of a colour."""
    source = Binary(data, ">")
    counts = locate(source, at, Element("counts", 1, [Property("", "i4")] * (head.counts + 3)))
    *dimension, M, F, _ = (int(counts.column(k)[0]) for k in range(head.counts + 3))
    for size in dimension:
        _check_dimension(head, size)
    if min(M, F) < 0:
        raise Malformed(f"the counts after {head.word} BINARY are {M} and {F}")
    rows = locate(source, counts.end, Element("vertices", M, [Property("", "f4")] * head.widths[0]))
    vertices = np.stack([rows.column(k) for k in range(3)], axis=1)
    lists = [Property("corners", "i4", "i4"), Property("colour", "f4", "i4")]
    faces = locate(source, rows.end, Element("faces", F, lists))
    if faces.lengths[:, 0].max(initial=0) > MAX_CORNERS:
        raise Malformed(f"a face has {faces.lengths[:, 0].max()} corners; at most {MAX_CORNERS} are read")
    if data[faces.end :].strip():
        raise Malformed(f"{len(data) - faces.end} bytes follow the last face")
    return _Found(vertices, faces.groups(0)[0])


def _read_text(tokens: Tokens, head: _Head) -> _Found:
    M, F, after = _counts(tokens, head)
    lines = len(tokens.firsts) - int(np.searchsorted(tokens.firsts, after[-1]))
    reasons: list[Malformed] = []
    for start in after:
        if start in tokens.firsts or start == len(tokens.values):
            try:
                return _by_lines(tokens, start, M, F, head)
            except Malformed as error:
                reasons.append(error)
    meanings: list[_Found] = []
    for start, width, coloured in product(after, head.widths, (False, True)):
        found = _as_stream(tokens, start, M, F, width, coloured)
        if found is not None and not any(_same(found, other) for other in meanings):
            meanings.append(found)
    if len(meanings) > 1:
        raise Malformed(
            "is ambiguous, because its lines do not show where faces end and colours begin; write every vertex and "
            "every face on a line of its own"
        )
    if meanings:
        return meanings[0]
    if lines < M + F:
        raise Malformed(f"the header declares {M} vertices and {F} faces, {lines} lines follow; the file is truncated")
    raise reasons[-1] if reasons else Malformed(f"its numbers are not {M} vertices and {F} faces, and nothing else")


def _counts(tokens: Tokens, head: _Head) -> tuple[int, int, list[int]]:
    """Return the numbers of vertices and faces, and where the vertices may begin: with or without a number of edges."""
    n = len(tokens.values)
    if not n:
        raise Malformed("ends behind its keyword; the file is truncated" if head.word else "holds no numbers")
    at = head.counts
    if not head.word and 0 in tokens.odd:
        raise Malformed(f"starts with {tokens.text.split(maxsplit=1)[0][:20].decode('latin-1')!r}; expected OFF")
    counts = tokens.values[at : at + 2]
    with np.errstate(invalid="ignore"):
        right = len(counts) == 2 and bool(((counts >= 0) & (counts == np.floor(counts)) & (counts < 2**53)).all())
    if not right:
        raise Malformed(
            f"{tokens.line(min(at, n - 1))} follows {head.word or 'no keyword'}; expected two whole numbers"
        )
    if at:
        _check_dimension(head, tokens.values[0])
    M, F = int(counts[0]), int(counts[1])
    after = [at + 3] if n >= at + 3 else []
    if head.word and at + 2 in tokens.firsts:
        after.append(at + 2)  # a line ends behind the two
    if not after:
        after = [at + 2]
    if n < 3 * M + F:  # before anything is made as large as they say
        lines = len(tokens.firsts) - int(np.searchsorted(tokens.firsts, after[-1]))
        raise Malformed(f"the header declares {M} vertices and {F} faces, {lines} lines follow; the file is truncated")
    return M, F, after


def _by_lines(tokens: Tokens, start: int, M: int, F: int, head: _Head) -> _Found:
    """Read every vertex and face from a line of its own. Raises Malformed, naming the line, where that fails."""
    firsts = tokens.firsts[np.searchsorted(tokens.firsts, start) :]
    if len(firsts) != M + F:
        raise Malformed(f"the header declares {M} vertices and {F} faces, {len(firsts)} lines follow")
    widths = np.diff(firsts, append=len(tokens.values))
    usual = max(int(widths[0]), 3) if M else 3
    wrong = np.flatnonzero(widths[:M] != usual)
    if len(wrong):
        place = tokens.line(int(firsts[wrong[0]]))
        raise Malformed(f"{place} has {widths[wrong[0]]} numbers; a vertex here has {usual}")
    vertices = tokens.take(firsts[:M], 3, "a vertex")
    sizes = tokens.take(firsts[M:], 1, "a face")[:, 0]
    tails = widths[M:] - 1 - sizes
    right = (sizes >= 0) & (sizes <= MAX_CORNERS) & np.isin(tails, _COLOURS)
    if not right.all():
        k = int(np.argmin(right))
        held = f"{sizes[k]:g} corners" if np.isnan(tails[k]) else f"{sizes[k]:g} corners and then {tails[k]:g} numbers"
        raise Malformed(f"{tokens.line(int(firsts[M + k]))}: a face has {held}; expected a colour of 0, 1, 3 or 4")
    return _Found(vertices, _polygons(tokens, firsts[M:] + 1, sizes.astype(np.int64)))


def _as_stream(tokens: Tokens, start: int, M: int, F: int, width: int, coloured: bool) -> _Found | None:
    """Read numbers regardless of line breaks; None if that does not match the file to its last number.

    coloured  the rest of the line after a face's last corner is its colour.
    """
    n = len(tokens.values)
    at = start + M * width
    if at > n:
        return None
    starts, sizes = np.empty(F, np.int64), np.empty(F, np.int64)
    values = tokens.values.data
    ends = np.append(tokens.firsts, n)[np.searchsorted(tokens.firsts, np.arange(n), side="right")].data
    for k in range(F):
        size = values[at] if at < n else -1
        if not (0 <= size <= MAX_CORNERS and size == int(size)):
            return None
        starts[k], sizes[k] = at + 1, int(size)
        at += 1 + int(size)
        if coloured and at <= n:
            end = ends[at - 1]
            if end - at not in _COLOURS:
                return None
            at = end
    if at != n:
        return None
    try:
        vertices = tokens.take(start + width * np.arange(M), 3, "a vertex")
        polygons = _polygons(tokens, starts, sizes)
    except Malformed:
        return None
    if any(group.size and (group.min() < 0 or group.max() >= M) for group in polygons):
        return None
    return _Found(vertices, polygons)


def _same(one: _Found, other: _Found) -> bool:
    return (
        np.array_equal(one.vertices, other.vertices, equal_nan=True)
        and len(one.polygons) == len(other.polygons)
        and all(np.array_equal(a, b) for a, b in zip(one.polygons, other.polygons, strict=True))
    )


def _polygons(tokens: Tokens, starts: np.ndarray, sizes: np.ndarray) -> list[np.ndarray]:
    return [whole(tokens.take(starts[rows], k, "a corner")) for k, rows in by_length(sizes)]
