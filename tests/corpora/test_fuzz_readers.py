"""Whatever the bytes of a mesh or cloud are, its reader gives a geometry or refuses them, within a bound of memory; and
what is valid, however it is written, comes out as what it was made from.
"""

import io
import json
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.corpora import ShapeError
from pipeline.corpora.files import READERS
from pipeline.corpora.formats.geometry import Cloud, Malformed, ReadOptions, Surface, sample_geometry
from pipeline.corpora.surface import triangle_areas
from tests.support.fuzz import bounded_memory, flipped
from tests.support.ply import CODES, made

VALID = settings(max_examples=80, deadline=None, derandomize=True)
DAMAGED = settings(max_examples=200, deadline=None, derandomize=True)
QUADS = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
WORDS = [
    b"nan",
    b"-inf",
    b"1e999",
    b"-1",
    b"0",
    b"4294967296",
    b"9" * 5000,
    b"1_0",
    b"x",
    b"1,5",
    b"\0",
    b"\xff",
    b"#",
    b"\r",
]


class Made:
    """A file's bytes, and what it is: a box (low and high corner) or a cloud [M, 3]."""

    def __init__(self, data: bytes, low, high=None):
        self.data, self.low, self.high = data, low, high

    def check(self, found: Surface | Cloud) -> None:
        if self.high is None:
            assert isinstance(found, Cloud)
            np.testing.assert_array_equal(found.points, self.low)
            return
        assert isinstance(found, Surface)
        used = found.vertices[found.faces.reshape(-1)]
        assert (used.min(axis=0).tolist(), used.max(axis=0).tolist()) == (list(self.low), list(self.high))
        a, b, c = np.subtract(self.high, self.low)
        assert triangle_areas(found.vertices, found.faces).sum() == pytest.approx(2 * (a * b + b * c + c * a))
        assert len(found.faces) == 12


@st.composite
def boxes(draw: st.DrawFn) -> tuple[list, list, np.ndarray]:
    """low, high, corners [8, 3], of quarters, which every type of number holds."""
    low = draw(st.lists(st.integers(-40, 40), min_size=3, max_size=3))
    size = draw(st.lists(st.integers(1, 60), min_size=3, max_size=3))
    low = [x / 4 for x in low]
    high = [x + s / 4 for x, s in zip(low, size, strict=True)]
    return (
        low,
        high,
        np.array([(x, y, z) for x in (low[0], high[0]) for y in (low[1], high[1]) for z in (low[2], high[2])]),
    )


@st.composite
def polygons(draw: st.DrawFn) -> list[tuple[int, ...]]:
    """The faces of the box, some as two triangles, each begun anywhere."""
    found: list[tuple[int, ...]] = []
    for quad in draw(st.permutations(QUADS)):
        turn = draw(st.integers(0, 3))
        a, b, c, d = quad[turn:] + quad[:turn]
        found += [(a, b, c), (a, c, d)] if draw(st.booleans()) else [(a, b, c, d)]
    return found


def number(draw: st.DrawFn, value: float) -> str:
    return draw(st.sampled_from([f"{value:g}", f"{value:.6f}", f"{value:e}", f"{value:+.2f}"]))


ENDS = st.sampled_from(["\n", "\r\n", "\r"])
BLANKS = st.sampled_from([" ", "  ", "\t", " \t "])


@st.composite
def obj_files(draw: st.DrawFn) -> Made:
    low, high, corners = draw(boxes())
    blank, style = draw(BLANKS), draw(st.sampled_from(["{0}", "{0}/{1}", "{0}//{1}", "{0}/{1}/{1}", "{0}/"]))
    lines = [
        blank.join(["v", *(number(draw, x) for x in corner)]) + draw(st.sampled_from(["", " 1", " # 9"]))
        for corner in corners
    ]
    back = draw(st.booleans())
    lines += ["vt 9 9", "s off", "", "usemtl a b"]
    for face in draw(polygons()):
        words = [style.format(k - 8 if back else k + 1, 1) for k in face]
        lines.append(blank.join([draw(st.sampled_from(["f", " f", "fo"])), *words]))
        if draw(st.integers(0, 5)) == 0:
            lines[-1] = lines[-1].replace(blank, f"{blank}\\\n", 1)
    return Made(draw(ENDS).join("\n".join(lines).split("\n")).encode() + b"\n", low, high)


@st.composite
def off_files(draw: st.DrawFn) -> Made:
    low, high, corners = draw(boxes())
    word, more = draw(
        st.sampled_from([("OFF", 0), ("", 0), ("COFF", 4), ("COFF", 3), ("NOFF", 3), ("CNOFF", 7), ("STOFF", 2)])
    )
    faces = draw(polygons())
    words = [[number(draw, x) for x in corner] + ["0.5"] * more for corner in corners]
    colour = draw(st.sampled_from([[], ["1"], ["1", "0", "0"], ["1", "0", "0", "0.5"]]))
    rows = words + [[str(len(face)), *map(str, face), *colour] for face in faces]
    counts = f"8 {len(faces)} 12"
    end, blank = draw(ENDS), draw(BLANKS)
    if draw(st.booleans()) or colour:
        text = end.join(blank.join(row) + draw(st.sampled_from(["", " # 1 2", end])) for row in rows)
    else:
        text = draw(st.sampled_from([" ", end])).join(value for row in rows for value in row)
    return Made(f"{word}{draw(st.sampled_from([' ', end])) if word else ''}{counts}{end}{text}".encode(), low, high)


@st.composite
def stl_files(draw: st.DrawFn) -> Made:
    low, high, corners = draw(boxes())
    triangles = [corners[list(t)] for a, b, c, d in QUADS for t in ((a, b, c), (a, c, d))]
    if draw(st.booleans()):
        data = draw(st.sampled_from([b"", b"solid facet"])).ljust(80) + struct.pack(
            "<I", draw(st.sampled_from([12, 0, 2**32 - 1]))
        )
        data += b"".join(struct.pack("<12fH", 0, 0, 1, *t.reshape(-1), 7) for t in triangles)
        return Made(data, low, high)
    blank, end = draw(BLANKS), draw(st.sampled_from(["\n", "\r\n", "\n\t", "\r"]))
    lines = []
    for t in triangles:
        vertices = [blank.join(["vertex", *(number(draw, x) for x in corner)]) for corner in t]
        lines += ["facet normal 0 0 1", f"outer{blank}loop", *vertices, "endloop", "endfacet"]
    return Made(end.join(["solid", *lines, "endsolid", ""]).encode(), low, high)


@st.composite
def ply_files(draw: st.DrawFn) -> Made:
    low, high, corners = draw(boxes())
    kinds = st.sampled_from([kind for kind in CODES if kind[0] not in "fd"])
    axis = draw(st.sampled_from(["float", "double"]))
    names = draw(st.permutations(["x", "y", "z", "red"]))
    vertex = ("vertex", [f"{axis if name != 'red' else 'uchar'} {name}" for name in names], [])
    for corner in corners.tolist():
        values = {**dict(zip("xyz", corner, strict=True)), "red": 9}
        vertex[2].append([values[name] for name in names])
    extras = draw(st.lists(st.sampled_from(["uchar a", "list uchar short b", "double c"]), max_size=3, unique=True))
    corner_list = f"list {draw(kinds)} {draw(kinds)} {draw(st.sampled_from(['vertex_indices', 'vertex_index']))}"
    order = draw(st.permutations([*extras, corner_list]))

    def row(face: tuple[int, ...]) -> list:
        extra = {"uchar a": 4, "list uchar short b": [3] * draw(st.integers(0, 4)), "double c": 0.5}
        return [list(face) if prop == corner_list else extra[prop] for prop in order]

    elements = [vertex, ("face", list(order), [row(face) for face in draw(polygons())])]
    elements.insert(draw(st.integers(0, 2)), ("other", ["int a", "list int float b"], [[1, [0.5] * k] for k in (0, 3)]))
    extra_lines = draw(st.sampled_from(["", "comment end_header\n", "obj_info element vertex 3\n\n"]))
    form = draw(st.sampled_from(["ascii", "little", "big"]))
    return Made(made(form, elements, draw(ENDS), extra_lines), low, high)


@st.composite
def glb_files(draw: st.DrawFn) -> Made:
    low, high, corners = draw(boxes())
    scale, shift = draw(st.sampled_from([1, 2, 0.5])), draw(st.integers(-4, 4))
    indices = np.array([t for a, b, c, d in QUADS for t in ((a, b, c), (a, c, d))])
    kind, code = draw(st.sampled_from([("u1", 5121), ("<u2", 5123), ("<u4", 5125)]))
    blob = corners.astype("<f4").tobytes() + indices.astype(kind).tobytes()
    blob += bytes(-len(blob) % 4)
    document = {
        "asset": {"version": "2.0"},
        "scenes": [{"nodes": [0]}],
        "nodes": [{"children": [1], "translation": [shift] * 3}, {"mesh": 0, "scale": [scale] * 3}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "indices": 1}]}],
        "accessors": [
            {"bufferView": 0, "componentType": 5126, "count": 8, "type": "VEC3"},
            {"bufferView": 1, "componentType": code, "count": 36, "type": "SCALAR"},
        ],
        "bufferViews": [
            {"buffer": 0, "byteLength": 96},
            {"buffer": 0, "byteOffset": 96, "byteLength": 36 * np.dtype(kind).itemsize},
        ],
        "buffers": [{"byteLength": len(blob)}],
    }
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    body = struct.pack("<II", len(text), 0x4E4F534A) + text + struct.pack("<II", len(blob), 0x004E4942) + blob
    data = struct.pack("<4sII", b"glTF", 2, 12 + len(body)) + body
    return Made(data, [x * scale + shift for x in low], [x * scale + shift for x in high])


def cloud(draw: st.DrawFn) -> np.ndarray:
    """[33 to 60, 3] of quarters that no column counts."""
    n = draw(st.integers(33, 60))
    return np.random.default_rng(draw(st.integers(0, 2**32))).integers(-400, 400, (n, 3)) / 4 + 0.25


@st.composite
def pcd_files(draw: st.DrawFn) -> Made:
    points = cloud(draw)
    names = draw(st.permutations(["x", "y", "z", "rgb"]))
    size = draw(st.sampled_from([4, 8]))
    kinds = [("U", 4) if name == "rgb" else ("F", size) for name in names]
    ascii = draw(st.booleans())
    header = (
        f"FIELDS {' '.join(names)}\nSIZE {' '.join(str(s) for _, s in kinds)}\nTYPE {' '.join(k for k, _ in kinds)}\n"
    )
    header += (
        f"COUNT 1 1 1 1\nWIDTH {len(points)}\nHEIGHT 1\nPOINTS {len(points)}\nDATA {'ascii' if ascii else 'binary'}\n"
    )
    columns = {"x": points[:, 0], "y": points[:, 1], "z": points[:, 2], "rgb": np.full(len(points), 7)}
    if ascii:
        rows = zip(*(columns[name] for name in names), strict=True)
        return Made(header.encode() + "".join(" ".join(f"{x:g}" for x in row) + "\n" for row in rows).encode(), points)
    table = np.zeros(len(points), [(name, f"<{k.lower()}{s}") for name, (k, s) in zip(names, kinds, strict=True)])
    for name in names:
        table[name] = columns[name]
    return Made(header.encode() + table.tobytes(), points)


@st.composite
def npy_files(draw: st.DrawFn) -> Made:
    points, file = cloud(draw), io.BytesIO()
    array = points.astype(draw(st.sampled_from(["<f4", ">f4", "f8", "f2"])))
    np.save(file, np.asfortranarray(array) if draw(st.booleans()) else array)
    return Made(file.getvalue(), array)


@st.composite
def npz_files(draw: st.DrawFn) -> Made:
    points, file = cloud(draw), io.BytesIO()
    more = {"normals": points} if draw(st.booleans()) else {}
    draw(st.sampled_from([np.savez, np.savez_compressed]))(file, points=points, **more)
    return Made(file.getvalue(), points)


@st.composite
def text_files(draw: st.DrawFn) -> Made:
    points, end = cloud(draw), draw(ENDS)
    separator = draw(st.sampled_from([" ", "\t", ",", ";", ", "]))
    order = draw(st.permutations([0, 1, 2]))
    plain = list(order) == [0, 1, 2] and draw(st.booleans())
    rows = [separator.join(f"{x:.2f}" for x in (point if plain else point[order])) for point in points]
    head = [] if plain else [separator.join("xyz"[k] for k in order)]
    return Made(end.join([*draw(st.sampled_from([[], ["# made"], ["// a"]])), *head, *rows]).encode(), points)


FILES = {
    ".obj": obj_files(),
    ".off": off_files(),
    ".stl": stl_files(),
    ".ply": ply_files(),
    ".glb": glb_files(),
    ".pcd": pcd_files(),
    ".npy": npy_files(),
    ".npz": npz_files(),
    ".csv": text_files(),
}


def read(suffix: str, data: bytes, parts: str = "") -> Surface | Cloud:
    with bounded_memory(), warnings.catch_warnings(action="error", category=RuntimeWarning):
        return READERS[suffix].read(data, Path(f"none{suffix}"), ReadOptions(parts=parts))


@pytest.mark.parametrize("suffix", FILES)
@VALID
@given(st.data())
def test_what_is_valid_is_read_as_what_it_was_made_from(suffix, data):
    file = data.draw(FILES[suffix])
    file.check(read(suffix, file.data))


@st.composite
def damaged(draw: st.DrawFn, suffix: str) -> bytes:
    """A valid file with some bytes, words or lines changed."""
    data = draw(FILES[suffix]).data
    for _ in range(draw(st.integers(0, 2))):
        words = data.split(b" ")
        at = draw(st.integers(0, len(words) - 1))
        words[at] = draw(st.sampled_from(WORDS))
        data = b" ".join(words)
    if draw(st.booleans()):
        lines = data.split(b"\n")
        at = draw(st.integers(0, len(lines) - 1))
        lines[at : at + draw(st.integers(0, 2))] = [lines[draw(st.integers(0, len(lines) - 1))]] * draw(
            st.integers(0, 2)
        )
        data = b"\n".join(lines)
    return draw(flipped(data)) if data else data


@pytest.mark.parametrize("suffix", FILES)
@DAMAGED
@given(st.data())
def test_what_is_damaged_is_read_or_refused(suffix, data):
    raw = data.draw(damaged(suffix))
    try:
        found = read(suffix, raw, data.draw(st.sampled_from(["", "", "group", "node", "a", "red", "rgb"])))
    except Malformed as error:
        str(error).encode()  # a reason can be written down
        return
    if isinstance(found, Surface):
        assert found.vertices.shape[1:] == found.faces.shape[1:] == (3,)
        assert found.faces.min(initial=0) >= 0
        assert found.faces.max(initial=-1) < len(found.vertices)
        pieces = len(found.faces)
    else:
        assert found.points.shape[1:] == (3,)
        pieces = len(found.points)
    assert found.parts is None or found.parts.shape == (pieces,)
    try:
        points, _ = sample_geometry(found, count=32, seed=0, id="a", source="a", repeat=True)
    except ShapeError:
        return
    assert points.shape == (32, 3)
    assert np.isfinite(points).all()
