"""The options of a corpus URI, read with their types; every fault is reported, not only the first."""

from collections.abc import Sequence
from difflib import get_close_matches

from pipeline.corpora.base import CorpusError

__all__ = ["Options"]


class Options:
    """The ``key=value`` pairs of one URI. A kind asks for each option it knows, then calls ``finish``.

    Attributes:
        uri: the text the options came from, for messages
    """

    def __init__(self, uri: str, values: dict[str, str]) -> None:
        self.uri = uri
        self._values = dict(values)
        self._allowed: list[str] = []
        self._problems: list[str] = []

    def integer(self, key: str, default: int, *, low: int, high: int = 2**63 - 1) -> int:
        """Read a whole number in low..high."""
        text = self._take(key, f"{key}=<{low} or more>")
        if text is None:
            return default
        try:
            value = int(text)
        except ValueError:
            self._problems.append(f"{key} = {text!r} is not a whole number")
            return default
        if not low <= value <= high:
            self._problems.append(f"{key} = {value} is outside {low}..{high}")
            return default
        return value

    def choice(self, key: str, allowed: Sequence[str], default: str) -> str:
        """Read one of some words."""
        text = self._take(key, f"{key}={'|'.join(allowed)}")
        if text is None or text in allowed:
            return default if text is None else text
        self._problems.append(f"{key} = {text!r} is not one of {', '.join(allowed)}")
        return default

    def words(self, key: str, allowed: Sequence[str]) -> tuple[str, ...]:
        """Read words separated by commas, in the order of ``allowed``; all of them when the option is absent."""
        text = self._take(key, f"{key}=<some of {','.join(allowed)}>")
        if text is None:
            return tuple(allowed)
        asked = [word.strip() for word in text.split(",")]
        unknown = [word for word in asked if word not in allowed]
        if unknown:
            self._problems.append(f"{key}: {', '.join(map(repr, unknown))} not known; there are {', '.join(allowed)}")
            return tuple(allowed)
        return tuple(word for word in allowed if word in asked)

    def text(self, key: str, default: str) -> str:
        """Read any text."""
        text = self._take(key, f"{key}=<name>")
        return default if text is None else text

    def finish(self) -> None:
        """Raise CorpusError if anything was wrong or an unknown option was given."""
        names = [allowed.split("=")[0] for allowed in self._allowed]
        for key in self._values:
            close = get_close_matches(key, names, n=1)
            self._problems.append(f"{key} is not an option" + (f"; did you mean {close[0]}?" if close else ""))
        if self._problems:
            allowed = ", ".join(self._allowed) if self._allowed else "none"
            lines = "\n  ".join(self._problems)
            raise CorpusError(
                f"{self.uri}: {len(self._problems)} problem(s)\n  {lines}\n  Options of this kind: {allowed}"
            )

    def _take(self, key: str, allowed: str) -> str | None:
        self._allowed.append(allowed)
        return self._values.pop(key, None)
