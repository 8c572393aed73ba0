"""Stereolithography, binary or ASCII."""

import re
from pathlib import Path

import numpy as np

from pipeline.corpora.formats.geometry import Malformed, ReadOptions, Surface

__all__ = ["read_stl"]

_RECORD = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
_UNKNOWN = (0, 0xFFFFFFFF)  # counts of writers that did not know it when they began
_SOLID = re.compile(r"^[^\S\r\n]*(?:end)?solid\b[^\r\n]*", re.MULTILINE)
_CORNER = ["vertex", "", "", ""]
_FACET = ["facet", "normal", "", "", "", "outer", "loop", *_CORNER * 3, "endloop", "endfacet"]  # "" is a number
_WORDS = {k: word for k, word in enumerate(_FACET) if word}
_CORNERS = [k for k in range(_FACET.index("outer"), len(_FACET)) if not _FACET[k]]
_PIECE = 2**17  # characters that are split at a time: the words take ten times their memory, and fit in a cache
_VERTEX = re.compile(r"\bvertex\s+(\S+)\s+(\S+)\s+(\S+)")


def read_stl(data: bytes, path: Path, options: ReadOptions) -> Surface:
    """Read the triangles of a binary file, or of all solids of an ASCII one, regardless of line breaks."""
    if options.parts:
        raise Malformed(f"parts={options.parts} was requested; an STL has none")
    if len(data) >= 84:
        count = int.from_bytes(data[80:84], "little")
        if len(data) == 84 + 50 * count and count:
            return _binary(data, count, {})
    text = data.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text[:5].lower() == b"solid" and b"facet" in text.lower() and b"\0" not in text:
        return _ascii(text.decode("latin-1").lower())
    if len(data) < 84:
        raise Malformed("neither a binary STL nor a complete ASCII one (solid ... endsolid)")
    if count in _UNKNOWN and len(data) > 84 and (len(data) - 84) % 50 == 0:
        return _binary(data, (len(data) - 84) // 50, {"counts of triangles not filled in": 1})
    rest = data[84 + 50 * count :]
    if count and rest and (len(rest) < 50 or not rest.strip(b"\0 \r\n\t")):
        return _binary(data, count, {"bytes behind the last triangle": len(rest)})
    raise Malformed(f"the header declares {count} triangles ({84 + 50 * count} bytes), the file has {len(data)} bytes")


def _binary(data: bytes, count: int, notes: dict[str, int]) -> Surface:
    corners = np.frombuffer(data, dtype=_RECORD, count=count, offset=84)["corners"]
    with np.errstate(invalid="ignore"):  # signalling NaN
        vertices = corners.astype(np.float64).reshape(-1, 3)
    return Surface(vertices, np.arange(3 * count).reshape(-1, 3), notes=notes)


def _ascii(text: str) -> Surface:
    if "endsolid" not in text:
        raise Malformed("neither a binary STL nor a complete ASCII one (solid ... endsolid)")
    # names of solids may be any words, vertex and facet among them
    text = _without_solids(text)
    vertices = _plain(text)
    if vertices is not None:
        return Surface(vertices, np.arange(len(vertices)).reshape(-1, 3))
    *facets, rest = re.split(r"\bendfacet\b", text)
    if re.search(r"\b(?:vertex|facet)\b", rest):
        raise Malformed(f"facet {len(facets) + 1} has no endfacet; the file is truncated")
    if not facets:
        raise Malformed("holds no facets")
    numbers: list[float] = []
    for k, facet in enumerate(facets, 1):
        found = _VERTEX.findall(facet)
        if len(found) != 3 or facet.count("vertex") != 3:
            raise Malformed(f"facet {k} has {facet.count('vertex')} vertices; expected three")
        try:
            if any("_" in word for corner in found for word in corner):
                raise ValueError
            numbers += [float(word) for corner in found for word in corner]
        except ValueError:
            raise Malformed(f"facet {k} has a vertex line that is not 3 numbers: {found}"[:160]) from None
    return Surface(np.array(numbers).reshape(-1, 3), np.arange(3 * len(facets)).reshape(-1, 3))


def _without_solids(text: str) -> str:
    """Remove lines that begin or end a solid."""
    # most files have two such lines, first and last, and a look at all others takes as long as reading them
    first, last = text.find("\n") + 1, text.rfind("solid")
    begin = text.rfind("\n", 0, max(last, 0)) + 1
    if text.startswith("solid") and text.find("solid", 1) == last and 0 < first <= begin:
        return _SOLID.sub("", text[:first]) + text[first:begin] + _SOLID.sub("", text[begin:])
    return _SOLID.sub("", text)


def _plain(text: str) -> np.ndarray | None:
    """Parse corners [3 F, 3] of facets that have exactly the format's words.

    None for any other text, which is then read facet by facet.
    """
    found = [np.empty((0, 3))]
    at, size = 0, len(_FACET)
    while at < len(text):
        end = len(text)
        if end - at > _PIECE:
            last = text.rfind("endfacet", at, at + _PIECE)
            end = last + len("endfacet")
            if last < 0 or not text[end].isspace():
                return None
        words = text[at:end].split()
        at = end
        facets, rest = divmod(len(words), size)
        if rest or any(words[k::size].count(word) != facets for k, word in _WORDS.items()):
            return None
        numbers = np.empty((facets, len(_CORNERS)))
        try:
            for column, k in enumerate(_CORNERS):
                numbers[:, column] = np.fromiter(map(float, words[k::size]), np.float64, facets)
        except ValueError:
            return None
        found.append(numbers.reshape(-1, 3))
    # words that are no numbers stand nowhere else, as in the numbers of a normal: "1vertex"
    count = sum(map(len, found))
    if "_" in text or text.count("facet") * 3 != 2 * count or text.count("vertex") != count or not count:
        return None
    return np.concatenate(found)
