"""JSON documents that carry their own checksum, and strictly typed access to their fields.

The checksum, under ``"sha256"``, is the SHA-256 of the document's canonical JSON without that key. So any change of
meaning is detected when the document is read, even if no other document holds a checksum of it.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from teacher_cache.errors import ManifestError

__all__ = ["Fields", "canonical", "decode_document", "encode_document", "plain"]

_SHA256 = re.compile("[0-9a-f]{64}")
MAX_DOCUMENT = 1 << 30  # bytes; a manifest of ten million shapes is about 30 MB


def canonical(value: Any) -> bytes:
    """Encode a JSON value canonically: sorted keys, no spaces, ASCII, no NaN. Raises ValueError, TypeError."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def plain(value: Any, where: str) -> Any:
    """Convert tuples to lists and mappings to dicts. Raises TypeError naming the key for anything but JSON values."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{where}: key {key!r} is not a string")
        return {key: plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    raise TypeError(f"{where} is a {type(value).__name__}; a recipe holds JSON values only")


def encode_document(document: Mapping[str, Any]) -> bytes:
    """Encode a document with its checksum.

    Keys are sorted, one per line; each item of a list of objects has a line of its own.
    """
    body = dict(document)
    body["sha256"] = hashlib.sha256(canonical(document)).hexdigest()
    lines = []
    for key in sorted(body):
        value = body[key]
        if isinstance(value, list) and value and isinstance(value[0], dict):
            items = ",\n".join("  " + canonical(item).decode("ascii") for item in value)
            text = f"[\n{items}\n ]"
        else:
            text = canonical(value).decode("ascii")
        lines.append(f" {json.dumps(key)}: {text}")
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode("ascii")


def decode_document(data: bytes, where: str) -> "Fields":
    """Decode a document. Raises ManifestError when it does not parse or its checksum is wrong."""
    if len(data) > MAX_DOCUMENT:
        raise ManifestError(f"{where}: {len(data)} bytes; expected at most {MAX_DOCUMENT}")
    try:
        document = json.loads(data.decode("utf-8"))
        if not isinstance(document, dict):
            raise ManifestError(f"{where}: expected a JSON object, found {type(document).__name__}")
        stored = document.pop("sha256", None)
        found = hashlib.sha256(canonical(document)).hexdigest()
    except (ValueError, TypeError, RecursionError, MemoryError) as error:
        reason = str(error) or type(error).__name__
        raise ManifestError(f"{where}: expected JSON, but it does not parse ({reason})") from error
    if stored != found:
        raise ManifestError(
            f"{where}: its contents have SHA-256 {found}, but it states {stored!r}: the file was changed or "
            "truncated.\n"
            "  Copy it again from where the cache came from, or delete it and run the build again."
        )
    return Fields(document, where)


class Fields:
    """Typed access to a JSON object; a field that is missing or of another type raises ManifestError with its key."""

    __slots__ = ("_place", "values")

    def __init__(self, values: Any, where: str, item: tuple[str, int] | None = None) -> None:
        """
        where  names the object in messages, or, with ``item``, the one that holds it in its list ``item[0]``.
        """
        self._place = where, item
        if not isinstance(values, dict):
            raise ManifestError(f"{self.where}: expected an object, found {type(values).__name__}")
        self.values: dict[str, Any] = values

    @property
    def where(self) -> str:
        where, item = self._place
        return where if item is None else f"{where}: {item[0]}[{item[1]}]"

    def _get(self, key: str, kind: type, said: str) -> Any:
        value = self.values.get(key)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            shown = repr(value)[:80] if key in self.values else "nothing"
            raise ManifestError(f"{self.where}: expected {key} to be {said}, found {shown}")
        return value

    def integer(self, key: str, low: int, high: int) -> int:
        value = self._get(key, int, f"an integer in {low}..{high}")
        if not low <= value <= high:
            raise ManifestError(f"{self.where}: expected {key} in {low}..{high}, found {value}")
        return int(value)

    def number(self, key: str) -> float:
        value = self.values.get(key)
        if type(value) not in (int, float):
            raise ManifestError(f"{self.where}: expected {key} to be a number, found {repr(value)[:80]}")
        return _as_float(value)

    def numbers(self, key: str) -> tuple[float, ...]:
        items = self._get(key, list, "a list of numbers")
        if not all(type(item) in (int, float) for item in items):
            raise ManifestError(f"{self.where}: expected {key} to be a list of numbers")
        return tuple(_as_float(item) for item in items)

    def text(self, key: str) -> str:
        return str(self._get(key, str, "a string"))

    def boolean(self, key: str) -> bool:
        return bool(self._get(key, bool, "true or false"))

    def choice(self, key: str, allowed: tuple[str, ...]) -> str:
        value = self.text(key)
        if value not in allowed:
            raise ManifestError(f"{self.where}: expected {key} to be one of {', '.join(allowed)}, found {value!r}")
        return value

    def digest(self, key: str) -> str:
        value = self.text(key)
        if _SHA256.fullmatch(value) is None:
            raise ManifestError(f"{self.where}: expected {key} to be a SHA-256 in hexadecimal, found {value[:80]!r}")
        return value

    def mapping(self, key: str) -> dict[str, Any]:
        return dict(self._get(key, dict, "an object"))

    def inner(self, key: str) -> "Fields":
        return Fields(self._get(key, dict, "an object"), f"{self.where}: {key}")

    def objects(self, key: str) -> "list[Fields]":
        items = self._get(key, list, "a list")
        where = self.where
        return [Fields(item, where, (key, i)) for i, item in enumerate(items)]

    def texts(self, key: str) -> tuple[str, ...]:
        items = self._get(key, list, "a list of strings")
        if not all(isinstance(item, str) for item in items):
            raise ManifestError(f"{self.where}: expected {key} to be a list of strings")
        return tuple(items)

    def integers(self, key: str, low: int, high: int) -> tuple[int, ...]:
        items = self._get(key, list, "a list of integers")
        for item in items:
            if type(item) is not int or not low <= item <= high:
                raise ManifestError(f"{self.where}: expected {key} to hold integers in {low}..{high}, found {item!r}")
        return tuple(items)


def _as_float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:  # an integer of hundreds of digits
        return float("inf") if value > 0 else float("-inf")
