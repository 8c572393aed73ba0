"""COLLADA files written by hand: what the scene's nodes place is what is read."""

import sys

import numpy as np
import pytest

from pipeline.corpora import ShapeError
from pipeline.corpora.files import read_geometry
from pipeline.corpora.formats.geometry import ReadOptions
from pipeline.corpora.surface import triangle_areas

POINTS = "0 0 0 3 0 0 3 5 0 0 5 0  0 0 1 4 0 1 0 3 1  0 0 2 4 4 2 0 1 2 -4 4 2"  # areas 15, 6 and a concave 4
POLYLIST = "<polylist count='3'>{}<vcount>4 3 4</vcount><p>0 1 2 3 4 5 6 7 8 9 10</p></polylist>"
POLYGONS = "<polygons count='3'>{}<p>0 1 2 3</p><p>4 5 6</p><p>7 8 9 10</p></polygons>"
INPUT = "<input semantic='VERTEX' source='#{}-v' offset='0'/>"
AREA = 15 + 6 + 4
ASSET = "<asset><created>2020-01-01T00:00:00Z</created><modified>2020-01-01T00:00:00Z</modified>"


def geometry(id="g", faces=POLYLIST, points=POINTS):
    n = len(points.split())
    source = (
        f"<source id='{id}-s'><float_array id='{id}-a' count='{n}'>{points}</float_array><technique_common><accessor "
        f"source='#{id}-a' count='{n // 3}' stride='3'><param name='X' type='float'/><param name='Y' type='float'/>"
        "<param name='Z' type='float'/></accessor></technique_common></source>"
    )
    vertices = f"<vertices id='{id}-v'><input semantic='POSITION' source='#{id}-s'/></vertices>"
    return f"<geometry id='{id}'><mesh>{source}{vertices}{faces.format(INPUT.format(id))}</mesh></geometry>"


def node(inside, moves="", name="n"):
    return f"<node id='{name}' name='{name}'>{moves}{inside}</node>"


USE = "<instance_geometry url='#g'/>"


def document(nodes, geometries=None, library="", up="Z_UP", before="", scene=True):
    shown = "<scene><instance_visual_scene url='#s'/></scene>" if scene else ""
    return (
        f"<?xml version='1.0'?>{before}<COLLADA xmlns='http://www.collada.org/2005/11/COLLADASchema' version='1.4.1'>"
        f"{ASSET}<unit name='inch' meter='0.0254'/><up_axis>{up}</up_axis></asset><library_geometries>"
        f"{geometries or geometry()}</library_geometries><library_nodes>{library}</library_nodes>"
        f"<library_visual_scenes><visual_scene id='s'>{nodes}</visual_scene></library_visual_scenes>{shown}</COLLADA>"
    )


@pytest.fixture
def read(tmp_path):
    pytest.importorskip("collada", reason="pycollada of the extra 'formats' is not installed")

    def reader(text, **options):
        (tmp_path / "a.dae").write_text(text)
        return read_geometry(tmp_path / "a.dae", ReadOptions(**options))

    return reader


def area(surface):
    return triangle_areas(surface.vertices, surface.faces).sum()


def box(surface):
    used = surface.vertices[np.unique(surface.faces)]
    return used.min(axis=0).tolist(), used.max(axis=0).tolist()


def test_nodes_place_their_meshes(read):
    """Twice as large, then turned so that x becomes y and y becomes -x, then moved by 10; the parent adds (0, 0, 7)."""
    moves = "<translate>10 0 0</translate><rotate>0 0 1 90</rotate><scale>2 2 2</scale>"
    surface = read(document(node(node(USE, moves, "in"), "<matrix>1 0 0 0 0 1 0 0 0 0 1 7 0 0 0 1</matrix>", "out")))
    assert area(surface) == pytest.approx(4 * AREA)
    np.testing.assert_allclose(box(surface), ([0, -8, 7], [10, 8, 11]), atol=1e-5)
    assert not surface.notes


@pytest.mark.parametrize("faces", [POLYLIST, POLYGONS])
def test_polygons_are_cut_as_their_outlines_have_them(read, faces):
    assert area(read(document(node(USE), geometry(faces=faces)))) == pytest.approx(AREA)


@pytest.mark.parametrize(
    ("faces", "count"),
    [
        ("<triangles count='2'>{}<p>0 1 2 0 2 3</p></triangles>", 2),
        ("<tristrips count='1'>{}<p>0 1 3 2</p></tristrips>", 2),
        ("<trifans count='1'>{}<p>0 1 2 3</p></trifans>", 2),
    ],
)
def test_triangles_strips_and_fans(read, faces, count):
    surface = read(document(node(USE), geometry(faces=faces)))
    assert (area(surface), len(surface.faces)) == (pytest.approx(15), count)


def test_instances_of_nodes_are_parts_and_what_the_scene_does_not_name_is_not_read(read):
    """The library's node twice, once three times as large; another of the library is not used."""
    library = node(USE, "<translate>0 0 9</translate>", "chair") + node(USE, name="unused")
    use = "<instance_node url='#chair'/>"
    lines = "<lines count='1'>{}<p>0 1</p></lines>"
    other = geometry("h", lines)
    nodes = node(use, name="a") + node(use + "<instance_geometry url='#h'/>", "<scale>3 3 3</scale>", "b")
    surface = read(document(nodes, geometry() + other, library), parts="node")
    assert area(surface) == pytest.approx(10 * AREA)
    assert surface.part_names == ("chair",)
    np.testing.assert_allclose(box(surface)[1], [12, 15, 33])
    assert surface.notes == {"sets of lines": 1}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (document(node(USE), scene=False), "has no scene; its libraries by themselves place nothing"),
        (document(node("<instance_geometry url='b.dae#g'/>")), "refers to 'b.dae#g', part of another file"),
        (document(node("<instance_geometry url='#none'/>")), "cannot be read by pycollada"),
        (document(node(USE, "<skew>30 1 0 0 0 1 0</skew>")), "holds <skew>, which is not supported"),
        (document(node("<instance_controller url='#c'/>")), "holds <instance_controller>, which"),
        (
            document(node(USE), geometry(faces=POLYLIST.replace("4 3 4", "4 3 5"))),
            r"cannot be read by pycollada|declares 12 polygon corners",
        ),
        (
            document(node(USE), geometry(faces=POLYLIST.replace("9 10<", "9 11<"))),
            r"cannot be read by pycollada|vertex 11; there",
        ),
        (document(node("")), "has no triangles"),
        (document(node(USE))[:-40], "is not complete XML"),
        (document(node(USE), before="<!DOCTYPE c [<!ENTITY a 'b'>]>"), "it declares a document type"),
    ],
)
def test_what_is_not_read_is_refused(read, text, reason):
    with pytest.raises(ShapeError, match=reason):
        read(text)


def test_the_axis_that_a_file_names_is_held_against_the_users(read):
    high = document(node(USE), up="Y_UP")
    assert read(high).notes == {"file that has y up, not turned (up=y turns it)": 1}
    assert read(high, up="y").notes == {}
    with pytest.raises(ShapeError, match="declares y as up, but up=z declares z"):
        read(high, up="z")
    assert "x up" in next(iter(read(document(node(USE), up="X_UP")).notes))


def test_other_bytes_and_a_missing_library_are_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "collada", None)
    for data, reason in ((b"\0\1", "is not XML"), (b"<x/>", r"is a DAE file, and collada, .*pip install")):
        (tmp_path / "a.dae").write_bytes(data)
        with pytest.raises(ShapeError, match=reason):
            read_geometry(tmp_path / "a.dae")
