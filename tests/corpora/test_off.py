"""OFF as people's programs write it: a box of 1 x 2 x 3 in many spellings, and what is refused by name."""

import struct
from pathlib import Path

import numpy as np
import pytest

from pipeline.corpora.formats.geometry import Cloud, Malformed, ReadOptions, Surface
from pipeline.corpora.formats.off import read_off

CORNERS = [(x, y, z) for x in (0, 1) for y in (0, 2) for z in (0, 3)]
QUADS = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]


def areas(surface: Surface | Cloud) -> np.ndarray:
    """Area that faces across x, y and z [3]; 12, 6, 4 for the box."""
    assert isinstance(surface, Surface)
    a, b, c = surface.vertices[surface.faces].transpose(1, 0, 2)
    return np.abs(np.cross(b - a, c - a)).sum(axis=0) / 2


def off(data: bytes | str) -> Surface | Cloud:
    return read_off(data if isinstance(data, bytes) else data.encode(), Path("a"), ReadOptions())


def box(head: str = "OFF\n", vertex: str = "{} {} {}", face: str = "", counts: str = "8 6 12") -> str:
    """The box, with ``face`` behind the corners of each face."""
    lines = [vertex.format(*corner) for corner in CORNERS]
    lines += [f"4 {a} {b} {c} {d}{face}" for a, b, c, d in QUADS]
    return f"{head}{counts}\n" + "\n".join(lines) + "\n"


def in_binary(word: str = "OFF", more: int = 0, colour: int = 0) -> bytes:
    data = f"{word} BINARY\n".encode() + struct.pack(">3i", 8, 6, 0)
    data += b"".join(struct.pack(f">{3 + more}f", *corner, *[0.5] * more) for corner in CORNERS)
    return data + b"".join(struct.pack(f">6i{colour}f", 4, *quad, colour, *[0.5] * colour) for quad in QUADS)


OFFS = {
    "plain": box(),
    "ModelNet": box("OFF"),
    "counts behind the word": box("OFF "),
    "no word": box(""),
    "a mark": "\ufeff" + box(),
    "small letters": box("off\n"),
    "no edges": box(counts="8 6"),
    "a line a count": box(counts="8\n6\n12"),
    "comments": "# OFF\n\n  # 1 2 3\n" + box("OFF # 8 6\n\n# 5\n", "{} {} {}# 9 9 9", " # 1 2 3 4"),
    "one colour": box(face=" 7"),
    "three": box(face=" 0.5 0.5 0.5"),
    "four": box(face="  255 0 0 255"),
    "COFF": box("COFF\n", "{} {} {} 255 0 0 255"),
    "COFF of three": box("COFF\n", "{} {} {} 255 0 0"),
    "NOFF": box("NOFF\n", "{} {} {} 0 0 1"),
    "CNOFF": box("CNOFF\n", "{} {} {} 0 0 1 255 0 0 255", " 255 0 0"),
    "NCOFF": box("NCOFF\n", "{} {} {} 0 0 1 255 0 0 255"),
    "STOFF": box("STOFF\n", "{} {} {} 0.5 0.5"),
    "STCNOFF": box("STCNOFF\n", "{} {} {} 0 0 1 255 0 0 255 0.5 0.5"),
    "nOFF of three": box("nOFF\n3\n"),
    "colours without a word for it": box("OFF\n", "{} {} {} 255 0 0 255"),
    "vertices over lines": box("OFF\n", "{}\n{} {}"),
    "one stream": " ".join(box().split()),
    "a number a line": "\n".join(box().split()),
    "CNOFF as a stream": " ".join(box("CNOFF\n", "{} {} {} 0 0 1 255 0 0 255").split()),
    "COFF of three as a stream": "\n".join(box("COFF\n", "{} {} {} 1 0 0").split()),
    "vertices over lines, faces with colours": box("OFF\n", "{}\n{} {}", " 255 0 0"),
    "faces over lines with colours": "".join(
        f"{line}\n" for line in box(face=" 0.5 0.5 0.5").replace("\n4 ", "\n4\n").split("\n")
    ),
}


@pytest.mark.parametrize("name", OFFS)
def test_spellings_of_one_off(name):
    for end in ("\n", "\r\n", "\r"):
        np.testing.assert_allclose(areas(off(OFFS[name].replace("\n", end))), [12, 6, 4])
    np.testing.assert_allclose(areas(off(OFFS[name].lstrip("\ufeff").encode("utf-16"))), [12, 6, 4])


def test_a_binary_off():
    for word, more in (("OFF", 0), ("NOFF", 3), ("CNOFF", 7), ("STCNOFF", 9)):
        for colour in (0, 3, 4):
            np.testing.assert_allclose(areas(off(in_binary(word, more, colour))), [12, 6, 4])
    for data in (in_binary()[:-1], in_binary("NOFF"), in_binary()[:20]):
        with pytest.raises(Malformed, match=r"the file ends before; it is truncated|list of|refers to vertex"):
            off(data)
    with pytest.raises(Malformed, match="9 bytes follow the last face"):
        off(in_binary() + b"123456789")


def test_an_off_without_faces_is_a_cloud():
    cloud = off("NOFF\n3 0 0\n1 2 3 0 0 1\n4 5 6 0 0 1\n7 8 9 0 0 1\n")
    assert isinstance(cloud, Cloud)
    assert cloud.points.tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]


def test_a_stream_of_two_meanings_is_refused():
    """A triangle of colour 4 and another, or a triangle and a quad whose corners go on in the next line."""
    vertices = "0 0 0 1 0 0 0 1 0 1 1 0\n"
    assert len(off(f"OFF\n4 2 0\n{vertices}3 0 1 2 3 0 1 3\n").faces) == 2  # the second one is no colour of the first
    assert len(off(f"OFF\n4 2 0\n{vertices}3 0 1\n2 5\n3 0 1 2 1 1 1\n").faces) == 2  # 5 corners are not there
    with pytest.raises(Malformed, match="is ambiguous"):
        off(f"OFF\n4 2 0\n{vertices}3 0 1 2 4\n3 0 1 2\n")
    surface = off("OFF\n4 2 0\n0 0 0\n1 0 0\n0 1 0\n1 1 0\n3 0 1 2 4\n3 0 1 2\n")
    assert surface.faces.tolist() == [[0, 1, 2], [0, 1, 2]]  # lines tell


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (box("4OFF\n", "{} {} {} 1"), "4OFF has vertices of four coordinates"),
        (box("nOFF\n4\n", "{} {} {} 1"), "nOFF has vertices of 4 coordinates; expected 3"),
        (box("NNOFF\n"), "starts with 'NNOFF'; expected OFF with"),
        (box("noff\n"), "starts with 'noff'; expected OFF"),
        (box(face=" 1 2"), r"line 11 \('4 0 1 3 2 1 2'\): a face has 4 corners and then 2 numbers"),
        (box(face=" 1 2 3 4 5"), "line 11 .* 4 corners and then 5 numbers"),
        (box().replace("4 1 5 7 3", "4 1 5 8 3"), "refers to vertex 8; there are 8"),
        (box().replace("4 1 5 7 3", "4 1 5 x 3"), r"line 16 \('4 1 5 x 3'\) is not made of numbers"),
        (box().replace("4 1 5 7 3", "5 1 5 7 3"), r"line 16 .*: a face has 5 corners and then -1 numbers"),
        (box().replace("4 1 5 7 3", "-4 1 5 7 3"), "line 16 .*: a face has -4 corners"),
        (box().replace("4 1 5 7 3\n", ""), "declares 8 vertices and 6 faces, 13 lines follow; the file is truncated"),
        (box() + "1 2 3 4 5\n", "numbers are not 8 vertices and 6 faces|15 lines follow"),
        (box().replace("\n1 2 0\n", "\n1 2 0 5\n"), r"line 9 \('1 2 0 5'\) has 4 numbers; a vertex here has 3"),
        (box(counts="999999999 999999999 0"), "declares 999999999 vertices .* 14 lines follow; the file is truncated"),
        (box(counts="0 999999999999999 0"), "declares 0 vertices and 999999999999999 faces, 14 lines follow"),
        (box(counts="8 -6 0"), "expected two whole numbers"),
        (box(counts="8 1e300 0"), "expected two whole numbers"),
        ("OFF", "ends behind its keyword"),
        ("# nothing\n", "holds no numbers"),
        ("OFF 3", "expected two whole numbers"),
    ],
)
def test_an_off_that_cannot_be_is_named(data, reason):
    with pytest.raises(Malformed, match=reason):
        off(data)
