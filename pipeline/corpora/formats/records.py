"""Rows of numbers and of lists of numbers, in binary or text, located without a loop where possible."""

import struct
from array import array
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from pipeline.corpora.formats.geometry import Malformed
from pipeline.corpora.formats.tokens import Tokens

__all__ = ["Binary", "Element", "Property", "Rows", "Source", "Words", "by_length", "locate", "skip", "whole"]

_CODES = {"i1": "b", "u1": "B", "i2": "h", "u2": "H", "i4": "i", "u4": "I", "i8": "q", "u8": "Q"}


class Property(NamedTuple):
    name: str
    kind: str  # NumPy type of a value, without the order of its bytes
    length: str | None = None  # of a list: the type of its length


class Element(NamedTuple):
    name: str
    rows: int
    properties: list[Property]

    @property
    def lists(self) -> list[int]:
        return [k for k, prop in enumerate(self.properties) if prop.length is not None]


class Source(Protocol):
    """The data that rows lie in. Places count bytes in binary, and words in text."""

    end: int  # place behind the last
    firsts: np.ndarray | None  # the first places of rows, where lines tell them

    def size(self, kind: str) -> int:
        """Return the places that a value takes."""

    def take(self, at: np.ndarray, kind: str, count: int) -> np.ndarray:
        """Read ``count`` values from each place [n]: [n, count]."""

    def reader(self, kind: str) -> Callable[[int], int]:
        """Return a function that reads one whole number. It raises IndexError, struct.error or Malformed."""

    def where(self, at: int, element: Element, row: int) -> str:
        """Describe a row for an error message."""


class Binary:
    """Bytes, of which ``order`` is the order ("<" or ">")."""

    firsts: np.ndarray | None = None

    def __init__(self, data: bytes, order: str) -> None:
        self.data, self.order, self.end = data, order, len(data)

    def size(self, kind: str) -> int:
        return np.dtype(kind).itemsize

    def take(self, at: np.ndarray, kind: str, count: int) -> np.ndarray:
        width = count * self.size(kind)
        if not width or not len(at):
            return np.empty((len(at), count), self.order + kind)
        # Every place of the data as an item of its own, so that rows come out in one step and take no memory beside.
        windows: np.ndarray = np.ndarray(self.end - width + 1, f"V{width}", self.data, strides=(1,))
        return windows[at].view(self.order + kind).reshape(len(at), count)

    def reader(self, kind: str) -> Callable[[int], int]:
        unpack = struct.Struct(self.order + _CODES[kind]).unpack_from
        return lambda at: unpack(self.data, at)[0]

    def where(self, at: int, element: Element, row: int) -> str:
        return f"{element.name} {row} (from 0)"


class Words:
    """Numbers as text. ``by_lines``: every row is a line of its own."""

    def __init__(self, tokens: Tokens, by_lines: bool) -> None:
        self.tokens, self.end = tokens, len(tokens.values)
        self.firsts = tokens.firsts if by_lines else None
        self._values = tokens.values.data

    def size(self, kind: str) -> int:
        return 1

    def take(self, at: np.ndarray, kind: str, count: int) -> np.ndarray:
        return self.tokens.take(at, count, "a number" if np.dtype(kind).kind == "f" else "a whole number")

    def reader(self, kind: str) -> Callable[[int], int]:
        def read(at: int) -> int:
            value = float(self._values[at])
            if not value.is_integer():
                raise Malformed(f"{self.tokens.line(at)}: the length of a list is not a whole number")
            return int(value)

        return read

    def where(self, at: int, element: Element, row: int) -> str:
        return f"{self.tokens.line(at)}, {element.name} {row} (from 0)"


class Rows(NamedTuple):
    """Rows that were found.

    starts   [R] int64, place of each.
    lengths  [R, L] int64, of each of its lists.
    end      place behind the last.
    """

    source: Source
    element: Element
    starts: np.ndarray
    lengths: np.ndarray
    end: int

    def places(self, k: int) -> np.ndarray:
        """Return the place [R] of each row's property ``k``; of the first value, if it is a list."""
        places, seen = self.starts.copy(), 0
        for prop in self.element.properties[:k]:
            if prop.length is None:
                places += self.source.size(prop.kind)
            else:
                places += self.source.size(prop.length) + self.source.size(prop.kind) * self.lengths[:, seen]
                seen += 1
        length = self.element.properties[k].length
        return places if length is None else places + self.source.size(length)

    def column(self, k: int) -> np.ndarray:
        """Return the values of a plain property: [R] float64."""
        with np.errstate(invalid="ignore"):  # signalling NaN
            return self.source.take(self.places(k), self.element.properties[k].kind, 1)[:, 0].astype(np.float64)

    def groups(self, k: int) -> tuple[list[np.ndarray], np.ndarray]:
        """Return a list property, rows of equal length together: arrays [F, n], and their rows [R] int64."""
        places, kind = self.places(k), self.element.properties[k].kind
        found = by_length(self.lengths[:, self.element.lists.index(k)])
        lists = [whole(self.source.take(places[rows], kind, n)) for n, rows in found]
        return lists, np.concatenate([rows for _, rows in found] or [np.empty(0, np.int64)])


def by_length(lengths: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """List each length that occurs in ``lengths`` [R], and the rows that have it."""
    order = np.argsort(lengths, kind="stable")
    values, counts = np.unique(lengths, return_counts=True)
    return list(zip(values.tolist(), np.split(order, np.cumsum(counts)[:-1]), strict=True)) if len(values) else []


def whole(numbers: np.ndarray) -> np.ndarray:
    """Convert numbers of any type to int64. Raises Malformed for fractions, NaN and impossible sizes."""
    fits = np.ones(numbers.shape, bool)
    if numbers.dtype.kind == "f":
        with np.errstate(invalid="ignore"):
            fits = np.isfinite(numbers) & (numbers == np.floor(numbers)) & (np.abs(numbers) < 2**53)
    elif numbers.dtype.itemsize == 8:
        fits = (numbers < 2**53) & (numbers > -(2**53) if numbers.dtype.kind == "i" else True)
    if not fits.all():
        raise Malformed(f"a face refers to a vertex by something that is not a whole number ({numbers[~fits][0]})")
    return numbers.astype(np.int64)


def skip(source: Source, at: int, element: Element) -> int:
    """Return the place behind the rows of an element that is not wanted."""
    if source.firsts is None:
        return locate(source, at, element).end if element.lists else _plain_end(source, at, element)
    after = int(np.searchsorted(source.firsts, at)) + (element.rows if element.properties else 0)
    return int(source.firsts[after]) if after < len(source.firsts) else source.end


def locate(source: Source, at: int, element: Element) -> Rows:
    """Find the rows of an element that begins at ``at``. Raises Malformed where they are not there."""
    if not element.rows or not element.properties:
        return Rows(source, element, np.empty(0, np.int64), np.empty((0, len(element.lists)), np.int64), at)
    if source.firsts is not None:
        return _by_lines(source, at, element, source.firsts)
    if not element.lists:
        end = _plain_end(source, at, element)
        starts = at + _fixed(source, element.properties) * np.arange(element.rows)
        return Rows(source, element, starts, np.empty((element.rows, 0), np.int64), end)
    first, after = _walk(source, at, element._replace(rows=1))
    stride = after - at
    if at + element.rows * stride <= source.end:  # all of the first one's lengths?
        starts = at + stride * np.arange(element.rows)
        rows = Rows(source, element, starts, np.broadcast_to(first, (element.rows, first.size)), 0)
        if all((_counts(rows, k) == n).all() for k, n in zip(element.lists, first[0], strict=True)):
            return rows._replace(end=at + element.rows * stride)
    lengths, end = _walk(source, at, element)
    items = np.array([source.size(element.properties[k].kind) for k in element.lists])
    strides = _fixed(source, element.properties) + (lengths * items).sum(axis=1)
    return Rows(source, element, at + np.cumsum(strides) - strides, lengths, end)


def _fixed(source: Source, properties: Sequence[Property]) -> int:
    """Return the places of a row, without those of its lists' values."""
    return sum(source.size(prop.length or prop.kind) for prop in properties)


def _plain_end(source: Source, at: int, element: Element) -> int:
    end = at + element.rows * _fixed(source, element.properties)
    if end > source.end:
        raise _truncated(element)
    return end


def _truncated(element: Element) -> Malformed:
    return Malformed(f"the header declares {element.rows} of {element.name}, the file ends before; it is truncated")


def _counts(rows: Rows, k: int) -> np.ndarray:
    """Return the lengths [R] before each list ``k``."""
    length = rows.element.properties[k].length or ""
    return rows.source.take(rows.places(k) - rows.source.size(length), length, 1)[:, 0]


def _by_lines(source: Source, at: int, element: Element, firsts: np.ndarray) -> Rows:
    """Locate rows that are lines, each of the numbers that the header describes."""
    begin = int(np.searchsorted(firsts, at))
    starts = firsts[begin : begin + element.rows]
    ends = np.append(firsts, source.end)[begin + 1 : begin + 1 + element.rows]
    if len(starts) < element.rows:
        raise _truncated(element)
    lengths = np.zeros((element.rows, len(element.lists)), np.int64)
    rows = Rows(source, element, starts, lengths, int(ends[-1]))

    def check(right: np.ndarray, what: str) -> None:
        if not right.all():
            row = int(np.argmin(right))
            raise Malformed(f"{source.where(int(starts[row]), element, row)} {what}")

    for column, k in enumerate(element.lists):
        check(rows.places(k) <= ends, "ends before its lists do")
        counts = _counts(rows, k)
        check((counts >= 0) & (counts == np.floor(counts)), "has a list whose length is not a whole number")
        check(counts <= ends - starts, "ends before its lists do")
        lengths[:, column] = counts
    widths = _fixed(source, element.properties) + lengths.sum(axis=1)
    check(widths == ends - starts, "does not have as many numbers as the header declares")
    return rows


def _walk(source: Source, at: int, element: Element) -> tuple[np.ndarray, int]:
    """Read the list lengths [R, L] int64 of each row, one by one, and the place behind the last."""
    steps, before = [], 0
    for prop in element.properties:
        if prop.length is None:
            before += source.size(prop.kind)
        else:
            steps.append((before, source.reader(prop.length), source.size(prop.length), source.size(prop.kind)))
            before = 0
    found = array("q")
    try:
        for _ in range(element.rows):
            for plain, read, width, size in steps:
                at += plain
                n = read(at)
                if n < 0:
                    row = len(found) // len(steps)
                    raise Malformed(f"{source.where(at, element, row)} has a list of {n} entries")
                found.append(n)
                at += width + size * n
            at += before
    except (IndexError, struct.error, OverflowError):
        raise _truncated(element) from None
    if at > source.end:
        raise _truncated(element)
    return np.array(found, np.int64).reshape(element.rows, len(steps)), at
