"""PLY as people's programs write it: a box of 1 x 2 x 3 in many dialects, and what is refused by name."""

import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from pipeline.corpora.formats import ply as ply_module
from pipeline.corpora.formats import tokens
from pipeline.corpora.formats.geometry import Cloud, Malformed, ReadOptions, Surface
from pipeline.corpora.formats.ply import read_ply
from pipeline.corpora.formats.polygons import cut_polygons
from tests.support.ply import CODES, made

CORNERS = [(x, y, z) for x in (0, 1) for y in (0, 2) for z in (0, 3)]
QUADS = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
MIXED = [(0, 1, 3), (0, 3, 2), *QUADS[1:]]


def areas(surface: Surface | Cloud) -> np.ndarray:
    """Area that faces across x, y and z [3]; 12, 6, 4 for the box."""
    assert isinstance(surface, Surface)
    a, b, c = surface.vertices[surface.faces].transpose(1, 0, 2)
    return np.abs(np.cross(b - a, c - a)).sum(axis=0) / 2


def ply(data: bytes | str, parts: str = "") -> Surface | Cloud:
    return read_ply(data if isinstance(data, bytes) else data.encode(), Path("a"), ReadOptions(parts=parts))


AXES = "property float x\nproperty float y\nproperty float z\n"


VERTEX = ("vertex", ["float x", "float y", "float z"], [list(corner) for corner in CORNERS])


def faces(properties: list[str], row=lambda face: [face], of=MIXED) -> tuple[str, list[str], list[list]]:
    return "face", properties, [row(list(face)) for face in of]


INDICES = "list uchar int vertex_indices"
DIALECTS = {
    "plain": [VERTEX, faces([INDICES])],
    "all quads": [VERTEX, faces([INDICES], of=QUADS)],
    "another name": [VERTEX, faces(["list uchar uint vertex_index"])],
    "scalar before": [VERTEX, faces(["uchar material", INDICES], lambda face: [4, face])],
    "scalars around": [VERTEX, faces(["short a", INDICES, "double b"], lambda face: [3, face, 2.5])],
    "lists around": [
        VERTEX,
        faces(
            ["list uchar float a", INDICES, "list ushort float texcoord"],
            lambda face: [[7] * (face[0] % 3), face, [0.5] * 2 * len(face)],
        ),
    ],
    "face first": [faces([INDICES]), VERTEX],
    "others between": [
        ("material", ["int id", "list int int x"], [[1, [4, 5]], [2, []], [3, [9]]]),
        VERTEX,
        ("nothing", [], []),
        ("range", ["list uint uchar bytes"], [[[1] * k] for k in (3, 0, 200)]),
        faces([INDICES]),
        ("edge", ["int vertex1", "int vertex2"], [[0, 1]] * 5),
    ],
    "doubles and colours": [
        ("vertex", ["uchar red", "double z", "double x", "double y"], [[9, z, x, y] for x, y, z in CORNERS]),
        faces([INDICES]),
    ],
    "vertices with lists": [
        (
            "vertex",
            ["float x", "list uchar int near", "float y", "float z"],
            [[x, [7] * x, y, z] for x, y, z in CORNERS],
        ),
        faces([INDICES]),
    ],
    "corners as floats": [VERTEX, faces(["list int float vertex_indices"])],
    "64 bits": [VERTEX, faces(["list uchar int64 vertex_indices"])],
    "strips": [
        VERTEX,
        (
            "tristrips",
            ["uchar a", "list int int vertex_indices"],
            [
                [5, [0, 1, 2, 3, -1, 4, 6, 5, 7, -1, 0, 4, 1, 5, -1]],
                [6, [2, 3, 6, 7, 7, 0, 0, 2, 4, 6]],
                [7, [1, 5, 3, 7]],
            ],
        ),
    ],
}
DIALECTS |= {
    f"lengths of {kind}": [VERTEX, faces([f"list {kind} int vertex_indices"])] for kind in CODES if kind[0] not in "fd"
}


@pytest.mark.parametrize("form", ["ascii", "little", "big"])
@pytest.mark.parametrize("name", DIALECTS)
def test_dialects_of_one_ply(name, form):
    for end in ("\n", "\r\n", "\r"):
        np.testing.assert_allclose(areas(ply(made(form, DIALECTS[name], end))), [12, 6, 4])


@pytest.mark.parametrize("form", ["ascii", "little", "big"])
def test_words_of_the_header_in_comments(form):
    extra = (
        "comment end_header\ncomment element vertex 9\n\nobj_info the end_header\nobj_info format ascii 1.0\ncomment\n"
    )
    for end in ("\n", "\r\n", "\r"):
        np.testing.assert_allclose(areas(ply(made(form, DIALECTS["scalars around"], end, extra))), [12, 6, 4])


def test_every_other_triangle_of_a_strip_is_turned_and_seams_are_none():
    strips = [[[0, 1, 2, 3, 4]], [[5, 6, 7, -1, 3, 2, 1, 0]], [[0, 1, 2, 2, 7, 7, 6]], [[4, 5, -1, 6]], [[]]]
    surface = ply(made("ascii", [VERTEX, ("tristrips", [INDICES.replace("uchar", "int")], strips)]))
    expected = [[0, 1, 2], [0, 1, 2], [1, 2, 0], [2, 1, 3], [2, 3, 4], [3, 2, 1], [5, 6, 7]]
    assert sorted(surface.faces.tolist()) == expected


def test_a_body_that_begins_like_a_line_end_is_not_cut():
    elements = [("vertex", ["uchar a", "float x", "float y", "float z"], [[10, *corner] for corner in CORNERS])]
    for end in ("\n", "\r\n", "\r"):
        cloud = ply(made("little", elements, end))
        assert isinstance(cloud, Cloud)
        assert cloud.points.tolist() == [list(corner) for corner in CORNERS]


def test_numbers_over_lines_and_blank_lines_are_a_stream():
    text = made("ascii", DIALECTS["lists around"]).decode()
    head, body = text.split("end_header\n")
    for spread in (body.replace("\n", "\n\n"), "\n".join(body.split()), body.replace("\n", " "), "\n" + body.strip()):
        np.testing.assert_allclose(areas(ply(f"{head}end_header\n{spread}")), [12, 6, 4])


def test_small_pieces_give_the_same_numbers(monkeypatch):
    data = made("ascii", DIALECTS["lists around"], "\r\n")
    body = data.index(b"end_header") + 12
    whole, stream = ply(data), tokens.read_tokens(data, body)
    for size in (7, 16, 33):
        monkeypatch.setattr(tokens, "_PIECE", size)
        assert ply(data).faces.tolist() == whole.faces.tolist()
        assert all(np.array_equal(a, b) for a, b in zip(tokens.read_tokens(data, body), stream, strict=True))
        with pytest.raises(Malformed, match=r"line 24 \('2 7 7 4 2 x 7 6 8 "):
            ply(data.replace(b"4 2 3 7 6", b"4 2 x 7 6"))


def test_words_where_nothing_is_read_do_no_harm():
    text = made(
        "ascii", [("vertex", ["float x", "float nx", "float y", "float z"], [[x, 5, y, z] for x, y, z in CORNERS])]
    )
    cloud = ply(text.replace(b" 5 ", b" -nan(ind) "))
    assert cloud.points.tolist() == [list(corner) for corner in CORNERS]


def test_parts_of_faces_of_clouds_and_of_corners():
    label = faces(["short label", INDICES], lambda face: [len(face), face])
    for form in ("ascii", "little", "big"):
        surface = ply(made(form, [VERTEX, label]), "label")
        assert sorted(surface.parts.tolist()) == [3, 3, *[4] * 10]
        assert set(surface.parts[surface.faces.max(axis=1) > 3].tolist()) == {4}
        points = ("vertex", ["float x", "float y", "float z", "uchar label"], [[*c, k] for k, c in enumerate(CORNERS)])
        assert ply(made(form, [points]), "label").parts.tolist() == list(range(8))
    halves = ("vertex", ["uchar label", "float x", "float y", "float z"], [[int(c[0] > 0), *c] for c in CORNERS])
    surface = ply(made("big", [halves, faces([INDICES])]), "label")
    expected = [int((surface.vertices[face, 0] > 0).sum() > 1) for face in surface.faces]
    assert surface.parts.tolist() == expected
    assert surface.notes == {"triangles whose corners are of several parts": 8}
    for parts in ("vertex_indices", "lable"):
        with pytest.raises(Malformed, match=f"parts={parts} was requested; its properties are x, y, z"):
            ply(made("big", [VERTEX, faces([INDICES])]), parts)
    with pytest.raises(Malformed, match="column 'q', requested as part labels, contains values other"):
        ply(made("ascii", [VERTEX, faces([INDICES, "float q"], lambda face: [face, 0.5])]), "q")


def test_bytes_behind_the_end_are_noted_or_refused():
    data = made("little", DIALECTS["plain"])
    assert ply(data + b"\r\n").notes == {}
    assert ply(data + b"tail").notes == {"bytes behind the last element": 4}
    with pytest.raises(Malformed, match="90 bytes follow what its header declares"):
        ply(data + b"x" * 90)


def ascii_ply(head: str = "", body: str = "") -> bytes:
    return f"ply\nformat ascii 1.0\n{head}end_header\n{body}".encode()


def changed(old: str, new: str, name: str = "plain", form: str = "ascii") -> bytes:
    data = made(form, DIALECTS[name])
    assert data.count(old.encode()) == 1
    return data.replace(old.encode(), new.encode())


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (ascii_ply("element face 0\n"), "has no vertex element; it has face"),
        (
            ascii_ply("element vertex 1\nproperty float x\nproperty float y\n", "1 2\n"),
            "no plain property z; it has x, y",
        ),
        (ascii_ply(f"element vertex 1\n{AXES}property int x\n", "1 2 3 4\n"), "2 properties x"),
        (ascii_ply(f"element vertex 1\n{AXES}element vertex 1\n{AXES}", "1 2 3\n1 2 3\n"), "two elements vertex"),
        (changed("vertex_indices", "corners"), "no list vertex_indices .or vertex_index.; it has corners"),
        (made("ascii", [VERTEX, faces([INDICES, "list int int vertex_index"], lambda f: [f, f])]), "two lists"),
        (made("big", [VERTEX, ("edge", ["int vertex1"], [[1]] * 3)]), "has 3 edges and no faces"),
        (
            made("big", [VERTEX, faces([INDICES], of=[(0, 1), (2,)])]),
            "no triangles .2 faces of fewer than three corners",
        ),
        (made("ascii", [*DIALECTS["strips"], faces([INDICES])]), "has both face and tristrips"),
        (made("big", [VERTEX, ("tristrips", [INDICES], [[[0, 1, 8]]])]), "a strip refers to vertex 8; there are 8"),
        (changed("4 2 3 7 6\n", "4 2 3 8 6\n"), "refers to vertex 8; there are 8"),
        (changed("4 2 3 7 6\n", "4 2 3 1e20 6\n"), "something that is not a whole number .1e.20"),
        (changed("4 2 3 7 6\n", "4 2 3 -7 6\n"), "refers to vertex -7; there are 8"),
        (
            changed("4 2 3 7 6\n", "-4 2 3 7 6\n"),
            r"line 22 \('-4 2 3 7 6'\), face 4 \(from 0\) has a list whose length",
        ),
        (changed("4 2 3 7 6\n", "3 2 3 7 6\n"), r"line 22 .* does not have as many numbers as the header declares"),
        (changed("4 2 3 7 6\n", "9 2 3 7 6\n"), r"line 22 .* ends before its lists do"),
        (changed("4 2 3 7 6\n", "4 2 3 7 6 255 0 0\n"), r"line 22 .* does not have as many numbers"),
        (changed("4 2 3 7 6\n", "4 2 3 7 1_0\n"), r"line 22 \('4 2 3 7 1_0'\) is not made of numbers"),
        (changed("4 2 3 7 6\n", "4 2 3 7,6\n"), "line 22"),
        (changed("1 2 0\n", "1 2,5 0\n"), r"line 16 \('1 2,5 0'\) is not made of numbers where a number"),
        (changed("4 2 3 7 6\n", ""), "declares 15 lines, 14 follow; the file is truncated"),
        (changed("4 2 3 7 6\n", "4 2 3 7 6\n1 2 3\n"), "more than declared|not have as many|lists do"),
        (changed("element vertex 8", "element vertex 999999999999999"), "declares 1000000000000006 lines, 15 follow"),
        (
            changed("element face 7", "element face 999999999", form="little"),
            "declares 999999999 of face, the file ends",
        ),
        (changed("element face 7", "element face 999999999", "lists around", "big"), "declares 999999999 of face"),
        (changed("format ascii 1.0", "format binary 1.0"), "format is 'binary'; expected ascii"),
        (changed("list uchar int", "list uchar long"), "header line 'property list uchar long vertex_indices'"),
        (
            made("little", [VERTEX, faces(["list char int vertex_indices"])]).replace(b"\x04", b"\xfc"),
            "list of -4 entries",
        ),
        (made("little", [VERTEX, faces([INDICES])])[:-1], "declares 7 of face, the file ends before"),
        (made("little", [VERTEX, faces([INDICES], of=QUADS)])[:-1], "declares 6 of face, the file ends before"),
        (b"ply\n" + b"comment x\n" * 200_000, "has no PLY header"),
        (b"ply end_header", "has no PLY header"),
        (b"", "has no PLY header"),
    ],
)
def test_a_ply_that_cannot_be_is_named(data, reason):
    with pytest.raises(Malformed, match=reason):
        ply(data)


def test_one_great_face_and_a_lie_of_its_length_take_no_memory():
    vertices = np.zeros((144, 3), "<f4").tobytes()
    head = b"ply\nformat binary_little_endian 1.0\nelement vertex 144\n" + AXES.encode() + b"element face %d\n"
    head += b"property list int uchar vertex_indices\nend_header\n"
    bodies = [
        (head % 1 + vertices + struct.pack("<i", 10**6) + bytes(10**6), "a face has 1000000 corners"),
        (head % 1 + vertices + struct.pack("<i", 2**31 - 1) + bytes(9), "the file ends before"),
        (head % (10**15 - 1) + vertices + struct.pack("<i", 3) + bytes(9), "the file ends before"),
    ]
    for data, reason in bodies:
        tracemalloc.start()
        try:
            with pytest.raises(Malformed, match=reason):
                ply(data)
            assert tracemalloc.get_traced_memory()[1] < 2**20
        finally:
            tracemalloc.stop()


def test_hundreds_of_lengths_are_as_many_groups(monkeypatch):
    calls = []
    monkeypatch.setattr(ply_module, "cut_polygons", lambda *a: calls.append(len(a[1])) or cut_polygons(*a))
    angles = np.arange(603) / 603 * 2 * np.pi
    ring = np.stack([np.cos(angles), np.sin(angles), angles * 0], axis=1)
    rows = [list(range(k)) for k in range(3, 603)]
    for form in ("little", "ascii"):
        vertex = ("vertex", ["double x", "double y", "double z"], ring.tolist())
        surface = ply(made(form, [vertex, ("face", ["list ushort short vertex_indices"], [[row] for row in rows])]))
        assert len(surface.faces) == sum(k - 2 for k in range(3, 603))
    assert calls == [600, 600]
