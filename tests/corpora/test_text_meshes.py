"""OBJ and STL as people's programs write them: a box of 1 x 2 x 3 in many spellings, and what is refused by line."""

import struct

import numpy as np
import pytest

from pipeline.corpora.formats.geometry import Cloud, Malformed, ReadOptions, Surface
from pipeline.corpora.formats.obj import read_obj
from pipeline.corpora.formats.stl import read_stl

CORNERS = [(x, y, z) for x in (0, 1) for y in (0, 2) for z in (0, 3)]
QUADS = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
TRIANGLES = [t for a, b, c, d in QUADS for t in ((a, b, c), (a, c, d))]


def areas(surface: Surface) -> np.ndarray:
    """Area that faces across x, y and z [3]."""
    a, b, c = surface.vertices[surface.faces].transpose(1, 0, 2)
    return np.abs(np.cross(b - a, c - a)).sum(axis=0) / 2


def obj(vertex: str = "v {} {} {}", face: str = "f {} {} {} {}", end: str = "\n") -> str:
    """The box, with 1-based indices."""
    lines = [vertex.format(*corner) for corner in CORNERS] + [face.format(*(k + 1 for k in quad)) for quad in QUADS]
    return end.join(lines) + end


SPELLINGS = {
    "plain": obj(),
    "tabs and indents": obj("\t v\t{}\t{}  {}", "   f\t{} {} {} {}"),
    "weights": obj("v {} {} {} 1.0"),
    "colours": obj("v {} {} {} 0.5 0.5 0.5"),
    "all of a corner": obj(face="f {0}/{0}/{0} {1}//7 {2}/9 {3}/"),
    "comments behind": obj("v {} {} {} # here", "f {} {} {} {}# there"),
    "carriage returns": obj(end="\r"),
    "both": obj(end="\r\n"),
    "continued": obj("v {} \\\n{} \\ \n {}", "f {} {} \\\n {} {}"),
    "a mark": "\ufeff" + obj(),
    "faces first": "\n".join(sorted(obj().splitlines())),
    "the first version's word": obj(face="fo {} {} {} {}"),
    "other lines": "mtllib f v.mtl\no v 1 2\ng f 9 9 9\ns 1\nvt 1 1\nvn 0 0 1\nusemtl f\n" + obj(),
    "exponents": obj("v {}e0 {}.0E+00 +{}"),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_spellings_of_one_obj(tmp_path, name):
    for coded in (SPELLINGS[name].encode(), SPELLINGS[name].lstrip("\ufeff").encode("utf-16")):
        surface = read_obj(coded, tmp_path / "a.obj", ReadOptions())
        np.testing.assert_allclose(areas(surface), [12, 6, 4])


def test_indices_that_count_back_do_so_from_the_vertex_last_read(tmp_path):
    blocks = []
    for shift in (0, 10, 30):
        blocks += [f"v {x + shift} {y} {z}" for x, y, z in CORNERS]
        blocks += ["f " + " ".join(str(k - 8) for k in quad) for quad in QUADS]
    surface = read_obj("\n".join(blocks).encode(), tmp_path / "a.obj", ReadOptions())
    x = surface.vertices[surface.faces][..., 0].min(axis=1)
    assert [int(((x >= low) & (x <= low + 1)).sum()) for low in (0, 10, 30)] == [12, 12, 12]


def test_polygons_of_mixed_sizes_and_parts_by_name(tmp_path):
    text = "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nv -1 2 0\nusemtl oak\n"
    text += "g a\nf 1 2 3 4\ng b c\nf 1 2 3\nf 1 2 3 4 5\ng a\nf 3 4 5\nf 1 2\nl 1 2\n"
    surface = read_obj(text.encode(), tmp_path / "a.obj", ReadOptions(parts="group"))
    assert surface.part_names == ("a", "b c")
    found = {tuple(face): part for face, part in zip(surface.faces.tolist(), surface.parts.tolist(), strict=True)}
    assert found[0, 2, 3] == 1  # of the pentagon, read last
    assert found[2, 3, 4] == 0
    assert np.bincount(surface.parts).tolist() == [3, 4]
    assert surface.notes == {"faces of fewer than three corners": 1, "lines": 1}
    assert read_obj(text.encode(), tmp_path / "a.obj", ReadOptions(parts="material")).part_names == ("oak",)
    assert read_obj(text.encode(), tmp_path / "a.obj", ReadOptions(parts="object")).part_names == ("none",)
    with pytest.raises(Malformed, match="parts=node was requested"):
        read_obj(text.encode(), tmp_path / "a.obj", ReadOptions(parts="node"))


def test_names_are_the_text_that_every_text_format_is(tmp_path):
    text = "v 0 0 0\nv 1 0 0\nv 0 1 0\ng stühle\xa0été\nf 1 2 3\n"
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32", "latin-1"):
        surface = read_obj(text.encode(encoding), tmp_path / "a.obj", ReadOptions(parts="group"))
        assert surface.part_names == ("stühle été",), encoding
    kanji = text.replace("stühle\xa0été", "椅子")
    assert read_obj(kanji.encode(), tmp_path / "a.obj", ReadOptions(parts="group")).part_names == ("椅子",)
    for encoding in ("utf-16-le", "utf-16-be"):
        with pytest.raises(Malformed, match="looks like UTF-16 without a byte order mark; save it as UTF-8"):
            read_obj(text.encode(encoding), tmp_path / "a.obj", ReadOptions())
    with pytest.raises(Malformed, match="starts with the byte order mark of utf-16, but is not"):
        read_obj(text.encode("utf-16")[:-1], tmp_path / "a.obj", ReadOptions())


def test_vertices_alone_are_a_cloud(tmp_path):
    cloud = read_obj(b"v 1 2 3\nv 4 5 6\np 1 2\n", tmp_path / "a.obj", ReadOptions())
    assert isinstance(cloud, Cloud)
    assert cloud.points.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert read_obj(b"v 1 2 3\nv 4 5 6\nvn 0 0 1\n", tmp_path / "a.obj", ReadOptions()).points.shape == (2, 3)


def test_points_that_are_named_are_the_cloud_and_the_rest_is_not(tmp_path):
    text = "v 1 2 3\nv 4 5 6\nv 7 8 9\np -1 1\nv 0 0 0\np 3 3\nl 1 4\n"
    cloud = read_obj(text.encode(), tmp_path / "a.obj", ReadOptions())
    assert isinstance(cloud, Cloud)
    assert cloud.points.tolist() == [[1, 2, 3], [7, 8, 9]]
    assert cloud.notes == {"lines": 1}


def test_points_beside_faces_are_counted_and_no_part_of_the_surface(tmp_path):
    surface = read_obj((obj() + "v 9 9 9\np 9 9\np 1\n").encode(), tmp_path / "a.obj", ReadOptions())
    np.testing.assert_allclose(areas(surface), [12, 6, 4])
    assert surface.notes == {"points beside the faces, not sampled": 3}


@pytest.mark.parametrize(
    ("lines", "held"),
    [
        ("l 1 2\nl 2 3\n", "2 lines"),
        ("curv 0 1 1 2\ncurv2 1 2\n", "2 free-form curves"),
        ("f 1 2\nl 1 2\n", "1 faces of fewer than three corners, 1 lines"),
    ],
)
def test_a_file_of_nothing_but_lines_is_no_cloud_of_their_ends(tmp_path, lines, held):
    with pytest.raises(Malformed, match=rf"holds neither triangles nor points \({held}\)"):
        read_obj(f"v 0 0 0\nv 1 0 0\nv 0 1 0\n{lines}".encode(), tmp_path / "a.obj", ReadOptions())


@pytest.mark.parametrize("word", ["surf", "bzp", "bsp", "cdc"])
def test_free_form_surfaces_are_refused_by_line_beside_faces_too(tmp_path, word):
    text = obj() + f"cstype bspline\ndeg 3 3\n{word} 0 1 0 1 1 2 3 4\nend\n"
    with pytest.raises(Malformed, match=rf"line 17: holds free-form surfaces \({word}\); export it as polygons"):
        read_obj(text.encode(), tmp_path / "a.obj", ReadOptions())


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("v 0 0\n", "line 1: 'v 0 0' is not three numbers"),
        ("# a\nv 1,5 0 0\n", "line 2: .* is not three numbers"),
        ("v 1_0 0 0\n", "line 1"),
        ("v \u0663 0 0\n", "line 1: .* is not three numbers"),
        ("v 0 0 0\nf 1 1 \u0661\n", "line 2: .* refers to a vertex that cannot exist"),
        ("v 0 0 0\nf 1 1 0\n", "line 2: .* refers to a vertex that cannot exist"),
        ("v 0 0 0\nf 1 1 -2\n", "line 2"),
        ("v 0 \\\n0 0\nv 0 0 0\nf 1 1 x\n", "line 4"),
        ("v 0 0 0\nf 1 1 1.5\n", "line 2"),
        ("v 0 0 0\nf 1 1 2\n", "line 2 refers to vertex 2; there are 1"),
        ("f 1 1 7\nv 0 0 0\nf 1 1 8\nf 1 1 8\nf 1 1 7\nv 1 1 1\n", "line 4 refers to vertex 8; there are 2"),
        ("v 0 0 0\np 1\np 1 2\n", "line 3 refers to vertex 2; there are 1"),
        ("v 0 0 0\nf 1 1 " + "9" * 5000, "line 2"),
        ("f 1 2 3\n", "there are 0"),
    ],
)
def test_a_line_that_cannot_be_is_named(tmp_path, text, reason):
    with pytest.raises(Malformed, match=reason):
        read_obj(text.encode(), tmp_path / "a.obj", ReadOptions())


# -- STL ---------------------------------------------------------------------------------------------------------------


def binary(head: bytes = b"made by hand", count: int | None = None, tail: bytes = b"") -> bytes:
    body = b"".join(
        struct.pack("<12fH", 0, 0, 0, *CORNERS[a], *CORNERS[b], *CORNERS[c], 0x8001) for a, b, c in TRIANGLES
    )
    return head.ljust(80) + struct.pack("<I", len(TRIANGLES) if count is None else count) + body + tail


def ascii_stl(space: str = " ", line: str = "\n", name: str = "") -> str:
    def facet(corners: tuple[int, ...]) -> str:
        vertices = [space.join(["vertex", *map(str, CORNERS[k])]) for k in corners]
        words = [f"facet{space}normal 0 0 0", f"outer{space}loop", *vertices, "endloop", "endfacet"]
        return line.join(words)

    return "\n".join([f"solid {name}", *map(facet, TRIANGLES), f"endsolid {name}", ""])


STL = {
    "binary": binary(),
    "a header that says solid": binary(b"solid facet"),
    "no count": binary(count=0),
    "all ones": binary(count=0xFFFFFFFF),
    "a line end behind": binary(tail=b"\r\n"),
    "zeros behind": binary(b"solid", tail=bytes(50)),
    "text": ascii_stl().encode(),
    "tabs": ascii_stl("\t", "\n\t").encode(),
    "one line a facet": ascii_stl(line=" ").encode(),
    "a mark and capitals": ("\ufeff" + ascii_stl(line="\r\n").upper()).encode(),
    "a name of the format's words": ascii_stl(name="vertex 1 2 3 facet endfacet").encode(),
    "two solids": ascii_stl().replace("endfacet\nfacet", "endfacet\nendsolid\nsolid b\nfacet", 1).encode(),
}


@pytest.mark.parametrize("name", STL)
def test_spellings_of_one_stl(tmp_path, name):
    np.testing.assert_allclose(areas(read_stl(STL[name], tmp_path / "a.stl", ReadOptions())), [12, 6, 4])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (binary()[:-1], "declares 12 triangles .* the file has 683"),
        (binary(count=11), "declares 11 triangles"),
        (binary(count=13), "declares 13 triangles"),
        (binary(tail=b"x" * 50), "declares 12 triangles"),
        (ascii_stl().encode()[:-30], "truncated|neither"),
        (ascii_stl().replace("vertex 1 2 3", "vertex 1 2", 1).encode(), "facet . has|is not 3 numbers"),
        (ascii_stl().replace("vertex 1 2 3", "vertex 1 2,5 3", 1).encode(), "is not 3 numbers"),
        (ascii_stl().replace("endloop", "vertex 9 9 9 endloop", 1).encode(), "facet 1 has 4 vertices"),
        (ascii_stl().replace("endfacet", "", 1).encode(), "facet 1 has 6 vertices"),
        (b"solid facet", "neither"),
        (b"", "neither"),
    ],
)
def test_an_stl_that_is_not_whole_is_refused(tmp_path, data, reason):
    with pytest.raises(Malformed, match=reason):
        read_stl(data, tmp_path / "a.stl", ReadOptions())
