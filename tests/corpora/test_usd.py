"""USD stages written as text by hand, and turned into usdc and usdz by OpenUSD: what a stage shows is what is read."""

import os
import sys
import zipfile

import numpy as np
import pytest

from pipeline.corpora import ShapeError, open_corpus
from pipeline.corpora.files import files_of, read_geometry
from pipeline.corpora.formats.geometry import ReadOptions
from pipeline.corpora.surface import triangle_areas

HEAD = '#usda 1.0\n(\n    upAxis = "Z"\n    metersPerUnit = 0.01\n)\n'
# Two rectangles that share no point, 3 x 5 and 2 x 2, and a triangle of area 6.
RECTANGLES = """
    int[] faceVertexCounts = [4, 3, 4]
    int[] faceVertexIndices = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    point3f[] points = [(0, 0, 0), (3, 0, 0), (3, 5, 0), (0, 5, 0), (0, 0, 1), (4, 0, 1), (0, 3, 1),
                        (0, 0, 2), (2, 0, 2), (2, 2, 2), (0, 2, 2)]
    uniform token subdivisionScheme = "none"
"""
AREA = 15 + 6 + 4


def mesh(name, more="", body=RECTANGLES):
    return f'def Mesh "{name}"\n{{{body}\n{more}\n}}\n'


def xform(name, inside, *ops, more=""):
    """ops: lines as `double3 xformOp:translate = (1, 2, 3)`, the first applied last."""
    names = ", ".join(f'"{op.split()[1]}"' for op in ops)
    order = f"uniform token[] xformOpOrder = [{names}]" if ops else ""
    return f'def Xform "{name}" {more}\n{{\n' + "\n".join(ops) + f"\n{order}\n{inside}\n}}\n"


@pytest.fixture
def stage(tmp_path):
    """Write stages, the last of which is read."""
    pytest.importorskip("pxr", reason="usd-core of the extra 'formats' is not installed")

    def write(text, name="a.usda", head=HEAD, **options):
        path = tmp_path / name
        path.write_text(head + text.replace("{ ", "{\n").replace(" }", "\n}"))  # a statement ends with its line
        return read_geometry(path, ReadOptions(**options))

    return write


def area(surface):
    return triangle_areas(surface.vertices, surface.faces).sum()


def box(surface):
    used = surface.vertices[np.unique(surface.faces)]
    return used.min(axis=0).tolist(), used.max(axis=0).tolist()


MOVES = ("double3 xformOp:translate = (10, 0, 0)", "float xformOp:rotateZ = 90", "float3 xformOp:scale = (2, 2, 2)")


def test_meshes_are_placed_by_all_their_parents(stage):
    """Twice as large, then turned so that x becomes y and y becomes -x, then moved by 10; then moved by (0, 0, 7)."""
    surface = stage(xform("up", xform("in", mesh("m"), *MOVES), "double3 xformOp:translate = (0, 0, 7)"))
    assert area(surface) == pytest.approx(4 * AREA)
    np.testing.assert_allclose(box(surface), ([0, 0, 7], [10, 8, 11]), atol=1e-6)
    assert not surface.notes


def test_a_concave_face_is_cut_as_its_outline_has_it(stage):
    arrow = """int[] faceVertexCounts = [4]
    int[] faceVertexIndices = [0, 1, 2, 3]
    point3f[] points = [(0, 0, 0), (4, 4, 0), (0, 1, 0), (-4, 4, 0)]
    uniform token subdivisionScheme = "none" """
    assert area(stage(mesh("m", body=arrow))) == pytest.approx(4)  # 16 of the triangle less 12 of the notch


def test_parts_are_prims_and_what_is_not_shown_is_counted(stage):
    text = mesh("a") + mesh("b") + mesh("hidden", 'token visibility = "invisible"')
    text += mesh("stand_in", 'uniform token purpose = "proxy"') + mesh("aid", 'uniform token purpose = "guide"')
    text += mesh("off").replace('"off"', '"off" (active = false)') + mesh("kind").replace("def", "class", 1)
    text += 'def BasisCurves "hair" { int[] curveVertexCounts = [2] }\n'
    surface = stage(
        text + xform("x", mesh("lost"), more="").replace("{", '{ token visibility = "invisible"', 1), parts="node"
    )
    assert surface.part_names == ("a", "b")
    assert np.bincount(surface.parts).tolist() == [5, 5]
    assert surface.notes == {
        "invisible shapes": 2,
        "shapes of the purpose proxy": 1,
        "shapes of the purpose guide": 1,
        "prims of type BasisCurves": 1,
    }


def test_subdivision_holes_and_moving_meshes_are_noted(stage):
    body = RECTANGLES.replace('uniform token subdivisionScheme = "none"', "int[] holeIndices = [2]")
    body = body.replace("points = [", "points.timeSamples = { 3: [(9, 9, 9)], 1: [").replace("2, 2)]", "2, 2)] }")
    surface = stage(mesh("m", body=body))
    assert area(surface) == pytest.approx(21)
    assert surface.notes == {
        "subdivision surfaces, read as their control meshes": 1,
        "faces that are holes": 1,
        "meshes that move, read at their earliest time": 1,
    }


INSTANCER = """
def PointInstancer "rows"
{
    rel prototypes = [</rows/p, </kinds/q>]
    int[] protoIndices = [0, 1, 0, 1]
    point3f[] positions = [(0, 0, 0), (100, 0, 0), (200, 0, 0), (300, 0, 0)]
    float3[] scales = [(1, 1, 1), (1, 1, 1), (2, 2, 2), (1, 1, 1)]
    int64[] ids = [5, 6, 7, 8]
    int64[] invisibleIds = [8]
    INSIDE
}
""".replace("/p,", "/p>,")


def test_instances_are_drawn_where_they_stand(stage):
    """p is itself twice as large; at 0 and, doubled again, at 200: 4 + 16 areas. q once at 100, moved by 7; masked at
    300. Neither is drawn where it is defined.
    """
    p = xform("p", mesh("m"), "float3 xformOp:scale = (2, 2, 2)")
    q = xform("q", mesh("m"), "double3 xformOp:translate = (0, 0, 7)")
    surface = stage(INSTANCER.replace("INSIDE", p) + f'class "kinds" {{ {q} }}')
    assert area(surface) == pytest.approx((4 + 16 + 1) * AREA)
    np.testing.assert_allclose(box(surface), ([0, 0, 0], [216, 20, 9]), atol=1e-5)
    assert surface.notes == {"instances that are masked": 1}


def test_layers_beside_the_file_are_joined_and_belong_to_the_shape(tmp_path, stage):
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "one.usda").write_text(HEAD.replace("(\n", '(\n defaultPrim = "m"\n', 1) + mesh("m"))
    place = 'def "a" (instanceable = true\n prepend references = @./parts/one.usda@)\n{\n}\n'
    surface = stage(place + place.replace('"a"', '"b"').replace("references", "payload"))
    assert area(surface) == pytest.approx(2 * AREA)
    assert [file.name for file in files_of(tmp_path / "a.usda")] == ["a.usda", "one.usda"]


@pytest.mark.parametrize("name", ["../out.usda", "/etc/hostname", "none.usda", "https://x.y/z.usda"])
def test_layers_elsewhere_are_refused(tmp_path, stage, name):
    (tmp_path.parent / "out.usda").write_text(HEAD + mesh("m"))
    with pytest.raises(ShapeError, match=r"refers to the layer .*which is not a file beside it"):
        stage(f'def "a" (references = @{name}@</m>) {{ }}\n' + mesh("m"))


def test_all_forms_of_a_file_are_read(tmp_path, stage):
    stage(mesh("m"))
    from pxr import Sdf, UsdUtils

    layer = Sdf.Layer.FindOrOpen(str(tmp_path / "a.usda"))
    for name, form in (("b.usdc", ""), ("c.usd", "usdc"), ("d.usd", "usda")):
        assert layer.Export(str(tmp_path / name), args={"format": form} if form else {})
    assert UsdUtils.CreateNewUsdzPackage(str(tmp_path / "b.usdc"), str(tmp_path / "e.USDZ"))
    for name in ("b.usdc", "c.usd", "d.usd", "e.USDZ"):
        assert area(read_geometry(tmp_path / name)) == pytest.approx(AREA), name
    assert files_of(tmp_path / "e.USDZ") == [tmp_path / "e.USDZ"]
    whole = (tmp_path / "b.usdc").read_bytes()
    (tmp_path / "b.usdc").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ShapeError, match=r"cannot be read by OpenUSD: .*truncated"):
        read_geometry(tmp_path / "b.usdc")
    with zipfile.ZipFile(tmp_path / "e.USDZ", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.usda", HEAD + mesh("m"))
    with pytest.raises(ShapeError, match=r"a.usda' in it is compressed"):
        read_geometry(tmp_path / "e.USDZ")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('def Sphere "ball" { }', "shows /ball of type Sphere, which is not supported"),
        ('def NurbsPatch "p" { }', "shows /p of type NurbsPatch"),
        (mesh("m", "int[] primvars:skel:jointIndices = [0]"), "posed by a skeleton"),
        (mesh("m", 'uniform token[] skel:blendShapes = ["smile"]'), "posed by a skeleton"),
        (xform("x", mesh("m"), more="").replace("{", "{\nint[] primvars:skel:jointIndices = [0]", 1), "by a skeleton"),
        (mesh("m").replace("[4, 3, 4]", "[4, 3, 5]"), "/m declares 12 face corners and lists 11"),
        (mesh("m").replace("9, 10]", "9, 11]"), "a face refers to vertex 11; there are 11"),
        (INSTANCER.replace("[0, 1, 0, 1]", "[0, 1, 2, 1]").replace("INSIDE", ""), "refers to prototype"),
        (mesh("m", 'token visibility = "invisible"'), r"has no triangles \(1 invisible shapes\)"),
        (mesh("m")[:-9], r"cannot be read by OpenUSD: .*a\.usda:1\d:"),
    ],
)
def test_what_is_not_read_is_refused(stage, text, reason):
    with pytest.raises(ShapeError, match=reason):
        stage(text)


def test_cubes_and_points(stage):
    cube = 'def Cube "c" { double size = 3 }\n'
    assert area(stage(cube)) == pytest.approx(54)
    points = 'def Points "p" { point3f[] points = [(1, 2, 3), (4, 5, 6)] }'
    cloud = stage(xform("x", points, "double3 xformOp:translate = (10, 0, 0)"))
    assert cloud.points.tolist() == [[11, 2, 3], [14, 5, 6]]
    assert stage(cube + points).notes == {"points beside the meshes, not sampled": 2}


def test_layers_of_other_units_are_refused(tmp_path, stage):
    (tmp_path / "b.usda").write_text(HEAD.replace("0.01", "1") + mesh("m"))
    with pytest.raises(ShapeError, match=r"its layers differ in metersPerUnit: 0.01, 1.0"):
        stage('def "a" (references = @b.usda@</m>) { }')


def test_the_axis_that_a_stage_names_is_held_against_the_users(tmp_path, stage):
    high = HEAD.replace('"Z"', '"Y"')
    assert stage(mesh("m"), head=high).notes == {"stage that has y up, not turned (up=y turns it)": 1}
    assert stage(mesh("m"), head=high, up="y").notes == {}
    with pytest.raises(ShapeError, match="declares y as up, but up=z declares z"):
        stage(mesh("m"), head=high, up="z")
    turned = open_corpus(f"folder:{tmp_path}?up=y", points=200)[0].points
    assert turned[:, 1].max() <= 0  # z of 0 to 2 became -y
    assert turned[:, 2].max() > 2  # y of 0 to 5 became z


def test_other_bytes_and_a_missing_library_are_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pxr", None)
    path = tmp_path / "a.usdc"
    for data, reason in ((b"PXR-USDC", "is a USD file, and pxr.*pip install"), (os.urandom(9), "starts neither")):
        path.write_bytes(data)
        with pytest.raises(ShapeError, match=reason):
            read_geometry(path)
    with pytest.raises(ShapeError, match="parts=material was requested"):
        read_geometry(path, ReadOptions(parts="material"))
