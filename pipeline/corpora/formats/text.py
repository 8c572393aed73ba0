"""Clouds as lines of numbers: XYZ, PTS, TXT, CSV.

Numbers stand between blanks, tabs, commas or semicolons; the decimal sign may be a comma where that is certain. A file
is read as one table: a single way of splitting has to fit every line, or it is refused with the line that does not fit.
"""

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.corpora.formats.columns import (
    REMEDY,
    chosen_columns,
    named_columns,
    part_column,
    sure_columns,
    whole_parts,
)
from pipeline.corpora.formats.geometry import Cloud, Malformed, ReadOptions
from pipeline.corpora.formats.plain_rows import PlainRows, plain_rows
from teacher_cache.foreign import marked_encoding

__all__ = ["decode_text", "read_text"]

_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?|[+-]?(?:nan|inf|infinity)", re.IGNORECASE)
_DECIMAL_COMMA = re.compile(r"[+-]?\d*(?:,\d+)?(?:[eE][+-]?\d+)?")
_COMMENT = re.compile(r"\s*(#|//|%|!)")
_ANY_SEPARATOR = re.compile(r"[,;\s]+")
_COUNT = re.compile(r"[0-9]{1,19}")
_WHOLE = re.compile(r"[+-]?\d*")
_BYTE_LINE = re.compile(rb"[^\r\n]*(?:\r\n|\n|\r)")
_WORDS = re.compile(rb"[^0-9+\-.,;eE \t\r\n]")  # what header and comment lines have, and numbers have not
_MAX_HEAD = 4096  # lines before the numbers, in bytes, that a plain file has


class _Line(NamedTuple):
    number: int
    text: str


class _Table(NamedTuple):
    """Lines and the one way to split them; ``separator`` None means any run of blanks and tabs.

    ``rows`` are all their numbers, of a plain file: ``lines`` is its first line only.
    """

    lines: list[_Line]
    separator: str | None
    decimal_comma: bool
    rows: PlainRows | None = None

    def fields(self, text: str) -> list[str]:
        return text.split() if self.separator is None else [f.strip(" \t") for f in text.split(self.separator)]


def decode_text(data: bytes) -> str:
    """Decode text as commonly saved: UTF-8 with or without a byte order mark, UTF-16 and UTF-32 with one; else Latin-1.

    Raises Malformed for what is no text.
    """
    name = marked_encoding(data)
    if name is not None:
        try:
            text = data.decode(name)
        except UnicodeDecodeError as error:
            raise Malformed(
                f"starts with the byte order mark of {name}, but is not valid: {error.reason}; save it as UTF-8"
            ) from error
    else:
        if b"\0" in data:
            alike = data[1::2].count(0) > len(data) // 4 or data[::2].count(0) > len(data) // 4
            raise Malformed(
                "looks like UTF-16 without a byte order mark; save it as UTF-8" if alike else "is binary, not text"
            )
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            text = data.decode("latin-1")
    if "\0" in text:
        raise Malformed("contains NUL bytes, as a file does that a power failure truncated")
    return text


def read_text(data: bytes, path: Path, options: ReadOptions) -> Cloud:
    """Read a table of numbers, one point per line.

    ``#``, ``//``, ``%`` and ``!`` start a comment line, and ``#`` one behind the numbers. A line of one whole number
    before the points is their count, which has to be right; several such blocks may follow each other. A header (a line
    of names, also as the last comment, or pandas' ``0,1,2``) says which columns are x, y and z; without one the first
    three are, or those behind a column of row numbers. Other columns may hold anything. Lines whose x, y and z are all
    NaN are left out and counted.
    """
    plain = _plain(data)
    if plain is not None:
        header, comments, table = plain
        width = len(table.fields(table.lines[0].text))
        return _cloud(table, width, _names(header, comments, table, width), options)
    lines, comments = _lines(decode_text(data))
    lines, promised = _blocks(_without_quotes(lines))
    if not lines:
        raise Malformed("holds no lines of numbers")
    header = _header_line(lines)
    body = lines[1:] if header else lines
    if header and promised is None:  # a header may stand before the count
        body, promised = _blocks(body)
    if not body:
        raise Malformed("holds a header and no lines of numbers")
    table = _table(body)
    width = len(table.fields(body[0].text))
    if promised is not None and promised != len(body):
        raise Malformed(f"its counts promise {promised} points, {len(body)} follow")
    if width < 3:
        raise Malformed(f"line {body[0].number} has {width} columns; expected at least 3")
    _check_widths(table, width)
    names = _names(header, comments, table, width)
    if names is None and header is None and _is_numbered(table.fields(body[0].text)) and len(body) > 1:
        table, names = _pandas(table, width)
    return _cloud(table, width, names, options)


def _cloud(table: _Table, width: int, names: list[str] | None, options: ReadOptions) -> Cloud:
    where, notes = _columns(table, width, names, options)
    points = _numbers(table, where)
    parts = None
    if options.parts:
        parts = whole_parts(_numbers(table, [part_column(options.parts, names, width)])[:, 0], options.parts)
    holes = np.isnan(points)
    if holes.any() and (holes := holes.all(axis=1)).any():
        notes["points without coordinates (NaN)"] = int(holes.sum())
        points, parts = points[~holes], None if parts is None else parts[~holes]
    return Cloud(points, parts=parts, notes=notes)


def _plain(data: bytes) -> tuple[_Line | None, list[_Line], _Table] | None:
    """Parse header, comments and numbers of a plain file; None for any other, which is read line by line.

    Plain is: a few comments, at most one header, the right count or none, then rows of equally many numbers.
    """
    at = 0
    while (line := _BYTE_LINE.match(data, at, _MAX_HEAD)) is not None and (_WORDS.search(line[0]) or line[0].isspace()):
        at = line.end()
    if marked_encoding(data) is not None or b"\0" in data[:at]:
        return None
    lines, comments = _lines(decode_text(data[:at]))
    row = _BYTE_LINE.match(data, at)
    if len(lines) > 1 or any('"' in line.text for line in lines) or row is None or not row[0].isascii():
        return None
    first = _Line(0, row[0].decode("ascii").strip())
    if lines and _header_line([lines[0], first]) is None:
        return None
    count = int(first.text) if _COUNT.fullmatch(first.text) else None
    if count is not None:
        at = row.end()
        row = _BYTE_LINE.match(data, at)
        if row is None or not row[0].isascii():
            return None
        first = _Line(0, row[0].decode("ascii").strip())
    rows = plain_rows(data[at:])
    if rows is None or not first.text:
        return None
    points, width = rows.values.shape
    table = _Table([first], rows.separator, False, rows)
    if width < 3 or count not in (None, points) or _is_numbered(table.fields(first.text)):
        return None
    if rows.separator == "," and not rows.marked:  # commas may be decimal signs then
        return None
    return (lines[0] if lines else None), comments, table


def _lines(text: str) -> tuple[list[_Line], list[_Line]]:
    """Split into non-empty lines without comments, and the comments that precede all of them."""
    lines: list[_Line] = []
    comments: list[_Line] = []
    # Only these end a line; str.splitlines would also cut at form feeds and other characters inside a field.
    for number, raw in enumerate(re.split(r"\r\n|\n|\r", text), start=1):
        mark = _COMMENT.match(raw)
        if mark:
            if not lines:
                comments.append(_Line(number, raw[mark.end() :].lstrip("#/%! \t")))
            continue
        bare = raw.split("#", 1)[0].strip(" \t")
        if bare and not (number == 1 and re.fullmatch(r"sep=.", bare)):  # how spreadsheets note the separator
            lines.append(_Line(number, bare))
    return lines, comments


def _blocks(lines: list[_Line]) -> tuple[list[_Line], int | None]:
    """Drop the counts that precede blocks of lines; -> the lines, and the sum of the counts (None without any)."""
    kept: list[_Line] = []
    total, at = 0, 0
    while at < len(lines) and _COUNT.fullmatch(lines[at].text):
        count = int(lines[at].text)
        kept += lines[at + 1 : at + 1 + count]
        total, at = total + count, at + 1 + count
    if at == 0:
        return lines, None
    return kept + lines[at:], total


def _is_number(field: str) -> bool:
    return _NUMBER.fullmatch(field.replace(",", ".", 1)) is not None


def _header_line(lines: list[_Line]) -> _Line | None:
    """Return the first line if it has words where the second has numbers."""
    words = [_is_number(field) for field in _ANY_SEPARATOR.split(lines[0].text)]
    if all(words):
        return None
    if len(lines) < 2:
        return lines[0]
    below = [_is_number(field) for field in _ANY_SEPARATOR.split(lines[1].text)]
    return lines[0] if sum(below) > sum(words) else None


def _table(lines: list[_Line]) -> _Table:
    """Determine the one way to split these lines."""
    if any(";" in line.text for line in lines):
        return _Table(lines, ";", any("," in line.text for line in lines))
    if not any("," in line.text for line in lines):
        return _Table(lines, None, False)
    inside = re.compile(r"[\d.][ \t]+[-+.\d]")  # a blank between two numbers of one field
    if not any(inside.search(line.text) for line in lines):
        table = _Table(lines, ",", False)
        _refuse_split_decimals(table)
        return table
    for line in lines:  # blanks separate, so commas can only be decimal signs
        for field in line.text.split():
            if "," in field and not (_DECIMAL_COMMA.fullmatch(field)):
                raise Malformed(
                    f"line {line.number} mixes commas and blanks: {line.text[:60]!r}; use one of them as separator"
                )
    return _Table(lines, None, True)


def _without_quotes(lines: list[_Line]) -> list[_Line]:
    """Remove the quotes around fields.

    A comma within quotes is a decimal sign, so a table with such fields comes out with ``;`` between them.
    """
    if not any('"' in line.text for line in lines):
        return lines
    rows: list[tuple[int, str, list[str]]] = []
    for number, text in lines:
        between = {mark for mark in ";,\t" if mark in re.sub(r'"[^"]*"', "", text)} or {" "}
        if len(between) > 1:
            raise Malformed(f"line {number} has two kinds of separators outside its quotes: {text[:60]!r}")
        separator = between.pop()
        try:
            (fields,) = csv.reader([text], delimiter=separator, skipinitialspace=True, strict=True)
        except (csv.Error, ValueError) as error:
            raise Malformed(f"line {number} has unbalanced quotes: {text[:60]!r}") from error
        rows.append((number, separator, [field.strip() for field in fields]))
    commas = any("," in field for _, _, fields in rows for field in fields)
    return [_Line(number, (";" if commas else separator).join(fields)) for number, separator, fields in rows]


def _refuse_split_decimals(table: _Table) -> None:
    """Refuse commas that are both separator and decimal sign: ``1,05,2,50,3,07``."""
    head = table.lines[0].text
    columns = head.count(",") + 1
    if columns < 6 or columns % 2 or any(mark in line.text for line in table.lines for mark in ".eE"):
        return
    if any(re.search(r"(?:^|,)[+-]?\d+,0\d", line.text) for line in table.lines):
        raise Malformed(
            f"line {table.lines[0].number} has commas between whole numbers with leading zeros ({head[:40]!r}), as "
            "when commas are decimal signs and separators both; write decimal points"
        )


def _check_widths(table: _Table, width: int) -> None:
    for line in table.lines:
        columns = len(line.text.split()) if table.separator is None else line.text.count(table.separator) + 1
        if columns != width:
            raise Malformed(f"line {line.number} has {columns} columns, the first has {width}: {line.text[:60]!r}")


def _names(header: _Line | None, comments: Sequence[_Line], table: _Table, width: int) -> list[str] | None:
    """Return the columns' names: from the header, else from the last comment that names x, y and z."""
    if header is not None:
        candidates = [table.fields(header.text), _ANY_SEPARATOR.split(header.text.strip(",; \t"))]
        for fields in candidates:
            if len(fields) == width:
                return _index_names(width) if fields[0] == "" and _is_numbered(fields) else fields
        raise Malformed(
            f"line {header.number} is a header of {len(candidates[0])} names ({header.text[:60]!r}), the lines below "
            f"have {width} columns"
        )
    for comment in reversed(comments):
        fields = [field for field in _ANY_SEPARATOR.split(comment.text) if field]
        where = named_columns(fields)
        if where is None:
            continue
        if len(fields) == width or (where == (0, 1, 2) and len(fields) <= width):
            return [*fields, *[""] * (width - len(fields))]
        raise Malformed(
            f"the comment in line {comment.number} names {len(fields)} columns ({comment.text[:60]!r}), the lines have "
            f"{width}; {REMEDY}"
        )
    return None


def _is_numbered(fields: Sequence[str]) -> bool:
    """Check whether a line is 0,1,2,...: the header that pandas writes for columns without names."""
    bare = list(fields[1:] if fields[0] == "" else fields)  # its index column has no name at all
    return len(bare) >= 3 and bare == [str(k) for k in range(len(bare))]


def _pandas(table: _Table, width: int) -> tuple[_Table, list[str] | None]:
    """Drop a first line of column numbers; refuse the table where that line could be a point."""
    first, rest = table.lines[0], table.lines[1:]
    if not any("." in line.text or "e" in line.text.lower() for line in rest):
        raise Malformed(
            f"line {first.number} is {first.text!r}: a header of column numbers, or a point? Delete it, or write it as "
            "0.0, 1.0, ..."
        )
    return table._replace(lines=rest), ["x", "y", "z"] + [f"column {k}" for k in range(3, width)]


def _index_names(width: int) -> list[str]:
    """Return names behind pandas' nameless index, when it numbers the columns."""
    return ["index", "x", "y", "z"] + [f"column {k}" for k in range(4, width)]


def _columns(
    table: _Table, width: int, names: list[str] | None, options: ReadOptions
) -> tuple[tuple[int, int, int], dict[str, int]]:
    """Find the positions of x, y and z, and notes."""
    if options.columns:
        return chosen_columns(options.columns, names, width), {}
    if names is not None:
        where = named_columns(names)
        if where is None:
            raise Malformed(f"its header names {', '.join(names)[:80]}; x, y and z are not all among them. {REMEDY}")
        return where, {}
    leading = range(min(width, 4))
    whole = [_is_whole(table, k) for k in leading]
    if width == 3 and not whole[0]:
        return (0, 1, 2), {}
    if not _is_number(table.fields(table.lines[0].text)[0]):
        word = table.fields(table.lines[0].text)[0]
        raise Malformed(f"line {table.lines[0].number} starts with {word[:20]!r}, not with a number; {REMEDY}")
    first = _numbers(table, [0])
    where, index = sure_columns(np.repeat(first, len(leading), axis=1), width, whole)
    return where, {"columns of row numbers passed over": index} if index else {}


def _is_whole(table: _Table, column: int) -> bool:
    """Check whether a column holds whole numbers only, as written."""
    if table.rows is not None:
        if not table.rows.marked:  # whole numbers and NaN, which is none
            return not np.isnan(table.rows.values[:, column]).any()
        if not (table.rows.values[:, column] == np.floor(table.rows.values[:, column])).all():
            return False
        return all(_WHOLE.fullmatch(table.fields(text)[column]) is not None for text in table.rows.lines())
    return all(_WHOLE.fullmatch(table.fields(line.text)[column]) is not None for line in table.lines)


def _numbers(table: _Table, where: Sequence[int]) -> np.ndarray:
    """Return some columns as float64 [n, len(where)]."""
    if table.rows is not None:
        return table.rows.values.take(where, axis=1)
    texts = [line.text for line in table.lines]
    commas = table.decimal_comma and any("," in table.fields(text)[k] for text in texts for k in where)
    if commas:
        for line in table.lines:
            fields = table.fields(line.text)
            for k in where:
                if not _DECIMAL_COMMA.fullmatch(fields[k]) or not fields[k]:
                    raise Malformed(
                        f"line {line.number} has {fields[k][:30]!r} in column {k + 1}; the file has commas as decimal "
                        "signs, and this is not such a number"
                    )
        texts = [text.replace(",", ".") for text in texts]
    try:
        return np.loadtxt(texts, usecols=list(where), ndmin=2, comments=None, delimiter=table.separator, encoding=None)
    except ValueError:
        pass
    for line in table.lines:  # to name the line
        fields = table.fields(line.text.replace(",", ".") if commas else line.text)
        for k in where:
            if not _NUMBER.fullmatch(fields[k]):
                raise Malformed(
                    f"line {line.number} has {fields[k][:30]!r} in column {k + 1}, which is not a number"
                    + ("" if fields[k] else ": the field is empty")
                )
    raise Malformed("its lines are not made of numbers")
