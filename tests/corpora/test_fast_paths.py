"""Plain files are read whole, all others line by line: both give the same geometry to the bit, or the same refusal.

The careful readers are the definition; here they are run on what the fast ways take, too.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.bench_readers import KINDS, large_meshes
from pipeline.corpora.files import READERS
from pipeline.corpora.formats import obj, obj_blocks, pcd, stl, text
from pipeline.corpora.formats.geometry import Malformed, ReadOptions, Surface
from pipeline.corpora.formats.plain_rows import plain_rows
from tests.support.fuzz import flipped

SETTINGS = settings(max_examples=100, deadline=None, derandomize=True)


@contextmanager
def line_by_line() -> Iterator[None]:
    """Within, no fast way is taken."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "_plain", lambda data: None)
        patch.setattr(pcd, "plain_rows", lambda body: None)
        patch.setattr(stl, "_plain", lambda text: None)
        patch.setattr(obj, "line_blocks", lambda text: [obj_blocks.Block("", 1, text)])
        yield


def outcome(suffix: str, data: bytes, options: ReadOptions) -> tuple:
    """All that a reader says, comparable bit by bit."""
    try:
        with warnings.catch_warnings(action="error"):
            found = READERS[suffix].read(data, Path(f"none{suffix}"), options)
    except Malformed as error:
        return (str(error),)
    arrays = (found.vertices, found.faces) if isinstance(found, Surface) else (found.points,)
    every = [*arrays, *([] if found.parts is None else [found.parts])]
    return (
        type(found),
        [(array.dtype, array.shape, array.tobytes()) for array in every],
        found.parts is None,
        found.part_names,
        dict(found.notes),
    )


def same(suffix: str, data: bytes, options: ReadOptions | None = None) -> tuple:
    options = options or ReadOptions()
    fast = outcome(suffix, data, options)
    with line_by_line():
        assert fast == outcome(suffix, data, options)
    return fast


# -- what is written ---------------------------------------------------------------------------------------------------

LIKELY = st.floats(-1e6, 1e6).map(lambda x: f"{x:.6g}") | st.integers(-99, 99).map(str) | st.floats().map(repr)
ODD = """
1. .5 +3 -0 0 00 007 1e5 1E-3 1e999 -1e-999 4.9e-324 1.7976931348623159e308 0.1000000000000000055511151231257827
nan -NaN NAN inf 1_0 0x10 1e . - + e 1-2 1+2 1,5 \u0663 x 9007199254740993 123456789012345678901234567890
"""
UNLIKELY = st.sampled_from(ODD.split())
BLANK = st.sampled_from([" ", "  ", "\t", " \t"])
END = st.sampled_from(["\n", "\n", "\n", "\r\n", "\r", "\n\n", " \n", "\n ", "\x0b", "\x0c", "\x85", "\x1c"])


@st.composite
def numbers(draw: st.DrawFn, count: int) -> list[str]:
    found = draw(st.lists(LIKELY, min_size=count, max_size=count))
    if count and draw(st.integers(0, 3)) == 0:
        found[draw(st.integers(0, count - 1))] = draw(UNLIKELY)
    return found


@st.composite
def rows(draw: st.DrawFn, separators: st.SearchStrategy[str], width: int) -> list[str]:
    """Lines of ``width`` numbers each, of the same kind within a column; sometimes one has more or fewer."""
    count = draw(st.integers(1, 6)) if draw(st.booleans()) else draw(st.integers(32, 36))
    separator = draw(separators)
    kinds = draw(st.lists(st.sampled_from(["count", "whole", "real", "real"]), min_size=width, max_size=width))
    base = draw(st.integers(-3, 3))
    random = np.random.default_rng(draw(st.integers(0, 99)))

    def word(kind: str, k: int) -> str:
        match kind:
            case "count":
                return str(base + k)
            case "whole":
                return str(random.integers(-3, 90))
            case _:
                return f"{random.normal():.{draw(st.integers(1, 17)) if k == 0 else 6}g}"

    table = [[word(kind, k) for kind in kinds] for k in range(count)]
    for _ in range(draw(st.sampled_from([0, 0, 1, 2]))):
        table[draw(st.integers(0, count - 1))][draw(st.integers(0, width - 1))] = draw(UNLIKELY | LIKELY)
    if draw(st.integers(0, 7)) == 0:
        row = table[draw(st.integers(0, count - 1))]
        row[-1:] = [] if draw(st.booleans()) else ["1", "2"]
    return [separator.join(row) for row in table]


@st.composite
def texts(draw: st.DrawFn) -> bytes:
    width = draw(st.integers(1, 7))
    body = draw(rows(BLANK | st.sampled_from([",", ";", ", ", ",", "; "]), width))
    head = []
    if draw(st.integers(0, 3)) == 0:
        head.append(
            draw(st.sampled_from(["# x y z", "// made", "%", "#", "", "# x y z a", "sep=,", '"x" "y"', "5 # a"]))
        )
    names = ["x", "y", "z", "r", "g", "b", "label"][: width + draw(st.sampled_from([0, 0, 0, 1]))]
    if draw(st.integers(0, 2)) == 0:
        head.append(draw(st.sampled_from([",", " ", ";"])).join(draw(st.permutations(names))))
    if draw(st.integers(0, 4)) == 0:
        head.append(" ".join(map(str, range(width))))
    if draw(st.integers(0, 2)) == 0:
        head.append(str(len(body) + draw(st.sampled_from([0, 0, 0, 1, -1]))))
    mark = draw(st.sampled_from(["", "", "", "", "\ufeff", " "]))
    end = draw(END)
    return (mark + end.join([*head, *body]) + draw(st.sampled_from([end, "", "#", "\n\n"]))).encode()


@st.composite
def pcds(draw: st.DrawFn) -> bytes:
    counts = draw(st.lists(st.sampled_from([1, 1, 1, 2]), min_size=3, max_size=5))
    body = draw(rows(BLANK | st.just(","), sum(counts)))
    n = len(body) + draw(st.sampled_from([0, 0, 0, 0, 1, -1]))
    names = draw(st.permutations(["x", "y", "z", "a", "b"][: len(counts)]))
    head = f"FIELDS {' '.join(names)}\nSIZE {'4 ' * len(counts)}\nTYPE {'F ' * len(counts)}\n"
    head += f"COUNT {' '.join(map(str, counts))}\nWIDTH {n}\nHEIGHT 1\nPOINTS {n}\nDATA ascii\n"
    end = draw(END)
    return (head + end.join(body) + draw(st.sampled_from([end, ""]))).encode()


@st.composite
def stls(draw: st.DrawFn) -> bytes:
    end, blank = draw(END), draw(BLANK)
    words = []
    for _ in range(draw(st.integers(0, 3))):
        words += ["facet", "normal", *draw(numbers(3)), "outer", "loop"]
        for _ in range(3):
            words += ["vertex", *draw(numbers(3))]
        words += ["endloop", "endfacet"]
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2])) if words else 0):
        at = draw(st.integers(0, len(words) - 1))
        words[at] = draw(
            st.sampled_from(
                ["vertex", "1vertex", "endfacet", "facet", "x", "", "solid b", "solid", "VERTEX", "vertex 1"]
            )
            | UNLIKELY
        )
    starts = {"facet", "outer", "vertex", "endloop", "endfacet", "solid b"}
    lines = "".join((end if word in starts else blank) + word for word in words)
    name = draw(st.sampled_from(["", " a", " facet vertex 1 2 3", " solid solid", "\tb endsolid"]))
    more = draw(st.sampled_from(["", "", f"{end}endsolid{name}{end}solid c{lines}", "endsolid"]))
    return f"solid{name}{lines}{more}{end}endsolid{name}{draw(st.sampled_from(['', end]))}".encode()


@st.composite
def objs(draw: st.DrawFn) -> bytes:
    vertices = draw(st.integers(14, 20))
    random = np.random.default_rng(draw(st.integers(0, 99)))
    blank, end = draw(BLANK), draw(st.sampled_from(["\n", "\n", "\r\n", "\r"]))
    lines = [blank.join(["v", *(f"{x:.7g}" for x in random.normal(size=3))]) for _ in range(vertices)]
    for _ in range(draw(st.sampled_from([0, 0, 1, 2]))):
        at = draw(st.integers(0, vertices - 1))
        lines[at] = blank.join(["v", *draw(numbers(draw(st.integers(2, 6))))])
    lines += draw(st.sampled_from([[], ["vn 0 0 1"] * 17, ["vt 1 x"] * 16, ["o a"], ["g é", "s 1"]]))
    style = draw(st.sampled_from(["{0}", "{0}/{1}", "{0}//{1}", "{0}/{1}/{1}", "{0}/"]))
    for _ in range(draw(st.integers(1, 2))):
        for _ in range(draw(st.integers(14, 20))):
            size = draw(st.sampled_from([3, 3, 3, 4]))
            at = int(random.integers(1, vertices - size))
            lines.append(blank.join(["f", *(style.format(k, at) for k in range(at, at + size))]))
        lines += draw(st.sampled_from([[], [], ["usemtl b c"], ["g", "o b"], ["f 1 2"], ["p 3"], ["l 1 2"], ["cdc 1"]]))
    for _ in range(draw(st.sampled_from([0, 0, 1, 2]))):
        at = draw(st.integers(0, len(lines) - 1))
        words = lines[at].split(blank)
        words[draw(st.integers(0, len(words) - 1))] = draw(
            UNLIKELY
            | st.sampled_from(["/1", "01", "-1", "+1", "0", "99", "20", "f", "v", "#", "\\", "1/", "v1", "1 2"])
        )
        lines[at] = blank.join(words)
    return end.join([*lines, *draw(st.sampled_from([[], [""], ["", ""]]))]).encode()


WRITTEN = {".xyz": texts(), ".pcd": pcds(), ".stl": stls(), ".obj": objs()}
CHOICES = [ReadOptions(), ReadOptions(), ReadOptions(columns=("3", "1", "2")), ReadOptions(columns=("x", "z", "y"))]
PARTS = {".xyz": ["4", "label"], ".pcd": ["a"], ".stl": ["group"], ".obj": ["group", "object", "material"]}


@pytest.mark.parametrize("suffix", WRITTEN)
@SETTINGS
@given(st.data())
def test_the_fast_way_and_the_careful_one_say_the_same(suffix, data):
    raw = data.draw(WRITTEN[suffix])
    if data.draw(st.integers(0, 2)) == 0:
        raw = data.draw(flipped(raw))
    options = data.draw(st.sampled_from(CHOICES) | st.sampled_from(PARTS[suffix]).map(lambda p: ReadOptions(parts=p)))
    same(suffix, raw, options)


@pytest.mark.parametrize("name", ["XYZ text", "OBJ", "STL ascii", "PCD ascii", "PCD binary"])
def test_large_files_are_the_same_across_pieces(name):
    [mesh] = large_meshes(1, 83)
    data = KINDS[name].write(mesh)
    assert len(same(KINDS[name].suffix, data)) > 1


def test_plain_files_take_the_fast_way():
    [mesh] = large_meshes(1, 7)
    xyz = KINDS["XYZ text"].write(mesh)
    count, csv = b"%d\n" % len(mesh[0]), b"x,y,z\n" + xyz.replace(b" ", b",")
    for data in (xyz, xyz.replace(b"\n", b"\r\n"), b"# x y z\n" + count + xyz, csv, csv.replace(b",", b";"), xyz[:-1]):
        assert text._plain(data) is not None
    solid = KINDS["STL ascii"].write(mesh).decode()
    assert stl._plain(stl._without_solids(solid)).shape == (3 * len(mesh[1]), 3)
    assert stl._plain(stl._without_solids(solid * 2)).shape == (6 * len(mesh[1]), 3)
    blocks = list(obj_blocks.line_blocks(KINDS["OBJ"].write(mesh).decode()))
    assert [block.kind for block in blocks] == ["v", "f", ""]
    assert obj_blocks.vertex_rows(blocks[0]).shape == mesh[0].shape
    assert obj_blocks.face_rows(blocks[1]).sizes.tolist() == [3] * len(mesh[1])
    with pytest.MonkeyPatch.context() as patch:
        # other numbers come out only where these are what is taken
        patch.setattr(pcd, "plain_rows", lambda body: (rows := plain_rows(body))._replace(values=rows.values + 1))
        found = READERS[".pcd"].read(KINDS["PCD ascii"].write(mesh), Path("none.pcd"), ReadOptions())
    np.testing.assert_array_equal(found.points, text.read_text(xyz, Path("none.xyz"), ReadOptions()).points + 1)
