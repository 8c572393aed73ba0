"""Text as a stream of numbers that knows its lines."""

import re
from typing import NamedTuple

import numpy as np

from pipeline.corpora.formats.geometry import Malformed

__all__ = ["Tokens", "read_tokens"]

_PIECE = 2**20  # bytes that are split at a time: words take ten times the memory of their text while they are read
_BLANKS = b" \t\n\r\v\f"  # what bytes.split() cuts at
_IS_BLANK = bytes(code in _BLANKS for code in range(256))
_OTHER_BLANKS = b"\x1c\x1d\x1e\x1f\x85\xa0"  # what str.split() cuts at, too
_ONE_LINE = bytes.maketrans(_BLANKS + _OTHER_BLANKS, b" " * len(_BLANKS) + b"x" * len(_OTHER_BLANKS))
_LINE_END = re.compile(rb"\r\n|\n|\r")


class Tokens(NamedTuple):
    """The words of a text, in order.

    values  [n] float64, NaN where a word is no number.
    firsts  [L] int64, the first word of each line that holds any.
    lines   [L] int64, the numbers of those lines, from 1, counted over the whole text.
    odd     [k] int64, the words that are no numbers.
    text    what they were read from.
    """

    values: np.ndarray
    firsts: np.ndarray
    lines: np.ndarray
    odd: np.ndarray
    text: bytes

    def take(self, at: np.ndarray, count: int, what: str) -> np.ndarray:
        """Return ``count`` numbers from each place of ``at`` [n]: [n, count] float64.

        Raises Malformed, naming the line of a ``what``, where one of them is no number.
        """
        places = at[:, None] + np.arange(count)
        if len(self.odd):
            wrong = places[np.isin(places, self.odd)]
            if len(wrong):
                raise Malformed(f"{self.line(int(wrong.min()))} is not made of numbers where {what} is expected")
        return self.values[places]

    def line(self, at: int) -> str:
        """Describe the line of a word, for an error message."""
        number = int(self.lines[np.searchsorted(self.firsts, at, side="right") - 1])
        text = _LINE_END.split(self.text)[number - 1].decode("latin-1").strip()
        return f"line {number} ({text[:60]!r})"


def read_tokens(text: bytes, start: int = 0) -> Tokens:
    """Split words at blanks and line ends (LF, CRLF, CR) after ``start``. Raises Malformed for a word of megabytes."""
    values: list[np.ndarray] = [np.empty(0)]
    firsts: list[np.ndarray] = [np.empty(0, np.int64)]
    lines: list[np.ndarray] = [np.empty(0, np.int64)]
    odd: list[np.ndarray] = [np.empty(0, np.int64)]
    line, words, at = 1 + len(_LINE_END.findall(text, 0, start)), 0, start
    while at < len(text):
        piece = text[at : _cut(text, at)]
        at += len(piece)
        codes = np.frombuffer(piece, np.uint8)
        blank = np.frombuffer(b"\1" + piece.translate(_IS_BLANK), bool)
        begins = np.flatnonzero(blank[:-1] > blank[1:])
        breaks = codes == ord("\n")
        if b"\r" in piece:
            alone = codes == ord("\r")
            alone[:-1] &= codes[1:] != ord("\n")
            breaks |= alone
        bounds = np.concatenate([[0], np.searchsorted(begins, np.flatnonzero(breaks)), [len(begins)]])
        held = np.flatnonzero(np.diff(bounds))  # lines that hold words
        firsts.append(words + bounds[held])
        lines.append(line + held)
        line += len(bounds) - 2
        found, wrong = _numbers(piece, len(begins))
        values.append(found)
        odd.append(words + wrong)
        words += len(found)
    numbers = np.concatenate(lines)
    fresh = np.diff(numbers, prepend=0) > 0  # a piece may begin within a line
    return Tokens(np.concatenate(values), np.concatenate(firsts)[fresh], numbers[fresh], np.concatenate(odd), text)


def _cut(text: bytes, at: int) -> int:
    """Return where a piece that begins at ``at`` may end: behind a blank, and not within CRLF."""
    end = at + _PIECE
    if end >= len(text):
        return len(text)
    end = 1 + max(text.rfind(blank, at, end) for blank in (b"\n", b"\r", b" ", b"\t"))
    if end <= at:
        raise Malformed("holds a word of megabytes; it is not text")
    return end + 1 if text[end - 1 : end + 1] == b"\r\n" else end


def _numbers(piece: bytes, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Parse the ``count`` numbers of a piece; -> them, and which of its words are none."""
    nothing = np.empty(0, np.int64)
    if not count:
        return np.empty(0), nothing
    try:
        # all as one row, which is twice as fast as Python's float of every word
        values = np.loadtxt([piece.translate(_ONE_LINE).decode("latin-1")], ndmin=1, comments=None)
        if values.shape == (count,):
            return values, nothing
    except (ValueError, OverflowError):
        pass
    words, wrong = piece.split(), []
    values = np.full(len(words), np.nan)
    for k, word in enumerate(words):
        try:
            if b"_" in word:  # Python takes 1_000 for a number, and no format does
                raise ValueError
            values[k] = float(word)
        except ValueError:
            wrong.append(k)
    return values, np.array(wrong, np.int64)
