"""Escaping of text for terminals and logs: foreign names cannot move the cursor, or forge or hide a line.

Ids, labels, paths and reasons come from untrusted files. Control characters and bidirectional marks are escaped
wherever they leave the program; only line ends and tabs of our own texts are kept.
"""

import json
import logging
import re
from collections.abc import Callable
from typing import Any

import click

__all__ = ["EscapingFormatter", "answer", "echo", "escaped"]

# C0 but tab and newline, DEL, C1, line and paragraph separators, bidirectional marks, embeddings and isolates, and
# halves of surrogate pairs, by which Python keeps bytes of file names that are no text.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def escaped(text: str) -> str:
    """Return ``text`` with terminal control characters escaped: ESC becomes ``\\\\x1b``."""
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def echo(message: Any = "", *, err: bool = False, nl: bool = True) -> None:
    """Print escaped text by `click.echo`."""
    click.echo(escaped(str(message)), err=err, nl=nl)


def answer(found: Any, text: str | Callable[[], None], *, as_json: bool) -> None:
    """Print a command's result: `found`, JSON values, as JSON, or else the text, or by a function that prints it."""
    if as_json:
        echo(json.dumps(found, indent=1))
    elif callable(text):
        text()
    else:
        echo(text)


class EscapingFormatter(logging.Formatter):
    """A formatter that escapes log lines."""

    def format(self, record: logging.LogRecord) -> str:
        return escaped(super().format(record))
