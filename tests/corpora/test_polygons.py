"""Polygons cut into triangles: their area by the shoelace sum, and no triangle leaves its polygon."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.corpora.formats import polygons
from pipeline.corpora.formats.geometry import Malformed, ReadOptions
from pipeline.corpora.formats.obj import read_obj
from pipeline.corpora.formats.off import read_off
from pipeline.corpora.formats.ply import read_ply
from pipeline.corpora.formats.polygons import MAX_CORNERS, cut_polygons

EXAMPLES = settings(max_examples=60, deadline=None, derandomize=True)


def shoelace(corners: np.ndarray) -> float:
    """Signed area of a polygon [k, 2], counted by its winding number."""
    x, y = corners.T
    return float((x * np.roll(y, -1) - y * np.roll(x, -1)).sum() / 2)


def winding(places: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """How often a polygon [k, 2] goes around each place [n, 2], by the angles it sweeps: [n] int."""
    arms = corners[None] - places[:, None]
    angles = np.arctan2(arms[..., 1], arms[..., 0])
    steps = np.diff(angles, axis=1, append=angles[:, :1])
    return np.rint(((steps + np.pi) % (2 * np.pi) - np.pi).sum(axis=1) / (2 * np.pi)).astype(int)


def star(k: int, seed: int) -> np.ndarray:
    """k corners around the origin, at random distances: [k, 2]. Simple, and mostly concave."""
    random = np.random.default_rng(seed)
    angles = (np.arange(k) + random.uniform(0.1, 0.9, k)) / k * 2 * np.pi
    return random.uniform(0.1, 1, k)[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def spiral(k: int) -> np.ndarray:
    """A band that winds around the origin, there and back: [2 k, 2]. No place in it sees the rest."""
    angles = np.linspace(0, 5 * np.pi, k)
    way = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return np.concatenate([way * (1 + angles)[:, None], (way * (1.5 + angles)[:, None])[::-1]])


def comb(teeth: int) -> np.ndarray:
    """A bar of height 1 with teeth of height 1 and area 1/2 each: [2 * teeth + 3, 2]."""
    tops = [(x + y / 2, 1 + y) for x in range(teeth) for y in (0, 1)]
    return np.array([(0, 0), *tops, (teeth, 1), (teeth, 0)], float)[::-1]


RING = [(0, 0), (4, 0), (4, 4), (0, 4), (0, 0), (1, 1), (1, 3), (3, 3), (3, 1), (1, 1)]  # a hole, joined by a bridge
SHAPES = {
    "arrow head": np.array([(0, 0), (0, 4), (2, 1), (4, 4), (4, 0)], float),
    "dart": np.array([(0, 0), (2, 1), (0, 2), (0.5, 1)], float),
    "comb": comb(9),
    "spiral": spiral(40),
    "a hole by a bridge": np.array(RING, float),
    "two loops that touch": np.array([(0, 0), (2, -1), (2, 1), (0, 0), (-1, 1), (-1, -1)], float),
    "corners on an edge": np.array([(0, 0), (1, 0), (2, 0), (2, 2), (1, 1), (1, 1), (0, 2)], float),
}


def placed(flat: np.ndarray, seed: int) -> np.ndarray:
    """A polygon [k, 2] somewhere in space, in a plane of any slope, in float32 as files hold it: [k, 3] float64."""
    random = np.random.default_rng(seed)
    axes = np.linalg.qr(random.normal(size=(3, 3)))[0][:2]
    return (flat @ axes + random.uniform(-3, 3, 3)).astype(np.float32).astype(np.float64)


def check_cut(flat: np.ndarray, faces: np.ndarray, tolerance: float) -> None:
    """Triangles over corners [k, 2] cover their polygon once, and nothing else."""
    turn = np.sign(shoelace(flat))
    areas = np.array([shoelace(flat[face]) for face in faces]) * turn
    size = abs(shoelace(flat))
    assert areas.min() > -tolerance * size
    assert areas.sum() == pytest.approx(size, rel=tolerance)
    thick = faces[areas > 1e-4 * size]  # a place in a thin triangle is beside it by rounding
    shares = np.random.default_rng(0).dirichlet((2, 2, 2), size=(len(thick), 3))
    places = (shares @ flat[thick]).reshape(-1, 2)
    assert (winding(places, flat) == turn).all()


@EXAMPLES
@given(st.integers(3, 60), st.integers(0, 2**32), st.booleans())
def test_random_concave_polygons_are_covered_once(k, seed, backwards):
    flat = star(k, seed)[:: -1 if backwards else 1]
    cut = cut_polygons(placed(flat, seed), [np.arange(k)[None]])
    assert cut.notes == {}
    check_cut(flat, cut.faces, 1e-5)


@EXAMPLES
@given(st.integers(4, 30), st.integers(0, 2**32), st.integers(0, 29))  # of 3 corners, not all go around the origin
def test_random_holes_by_a_bridge_are_left_open(k, seed, at):
    rim = np.roll(star(k, seed), at % k, axis=0)
    hole = rim * np.random.default_rng(seed).uniform(0.2, 0.6)  # so a bridge along a ray is inside
    flat = np.concatenate([rim, rim[:1], hole[:1], hole[1:][::-1], hole[:1]])
    cut = cut_polygons(placed(flat, seed), [np.arange(len(flat))[None]])
    assert cut.notes == {}
    check_cut(flat, cut.faces, 1e-5)


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_is_covered_once_from_any_first_corner(name):
    for start in range(len(SHAPES[name])):
        for flat in (np.roll(SHAPES[name], start, axis=0), np.roll(SHAPES[name][::-1], start, axis=0)):
            cut = cut_polygons(placed(flat, start), [np.arange(len(flat))[None]])
            assert cut.notes == {}
            check_cut(flat, cut.faces, 1e-5)


def test_areas_known_by_hand():
    for name, area in (("arrow head", 10), ("dart", 1.5), ("comb", 13.5), ("a hole by a bridge", 12)):
        assert abs(shoelace(SHAPES[name])) == area


def test_a_plain_quad_is_two_triangles_from_its_first_corner():
    square = np.array([(0, 0, 5), (1, 0, 5), (1, 1, 5), (0, 1, 5)], float)
    assert cut_polygons(square, [np.array([[0, 1, 2, 3]])]).faces.tolist() == [[0, 1, 2], [0, 2, 3]]


def test_quads_that_are_not_quite_flat_are_two_triangles_without_a_word():
    random = np.random.default_rng(3)
    square = np.array([(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0)], float)
    for bend in (1e-7, 1e-3, 0.1, 0.4):
        bent = square + np.stack([np.zeros(4), np.zeros(4), random.choice([-bend, bend], 4)], axis=1)
        cut = cut_polygons(bent, [np.array([[0, 1, 2, 3]])])
        assert (len(cut.faces), cut.notes) == (2, {})
        assert set(cut.faces.reshape(-1).tolist()) == {0, 1, 2, 3}


def test_an_arrow_head_that_is_bent_along_its_middle_keeps_its_notch():
    flat = SHAPES["arrow head"]
    bent = np.concatenate([flat, 0.05 * np.abs(flat[:, :1] - 2)], axis=1)
    check_cut(flat, cut_polygons(bent, [np.arange(5)[None]]).faces, 1e-9)


def test_owners_are_counted_over_all_groups():
    random = np.random.default_rng(5)
    sizes, counts = (4, 2, 11, 3, 7), (3, 2, 4, 5, 1)
    total = sum(k * count for k, count in zip(sizes, counts, strict=True))
    shuffled = np.split(random.permutation(total), np.cumsum([k * n for k, n in zip(sizes, counts, strict=True)])[:-1])
    groups = [part.reshape(-1, k) for part, k in zip(shuffled, sizes, strict=True)]
    flat = np.empty((total, 2))
    for group in groups:
        for row in group:
            flat[row] = star(max(len(row), 3), int(row[0]))[: len(row)]
    cut = cut_polygons(placed(flat, 1), groups)
    assert cut.notes == {"faces of fewer than three corners": 2}
    wanted = [row.tolist() for group in groups for row in group]
    for number, corners in enumerate(wanted):
        own = cut.faces[cut.owners == number]
        if len(corners) == 2:
            assert len(own) == 0
            continue
        assert len(own) == len(corners) - 2
        check_cut(flat[corners], np.array([[corners.index(corner) for corner in face] for face in own.tolist()]), 1e-5)


def test_fewer_than_three_corners_are_no_face_and_counted():
    vertices = np.eye(3)
    groups = [np.empty((2, 0), np.int64), np.array([[1]]), np.array([[0, 1]] * 4), np.array([[0, 1, 2]])]
    cut = cut_polygons(vertices, groups)
    assert (cut.faces.tolist(), cut.owners.tolist()) == ([[0, 1, 2]], [7])
    assert cut.notes == {"faces of fewer than three corners": 7}
    assert cut_polygons(vertices, []).faces.shape == (0, 3)


def test_a_polygon_of_most_corners_is_cut_and_one_more_is_refused():
    angles = np.arange(MAX_CORNERS + 1) / (MAX_CORNERS + 1) * 2 * np.pi
    ring = np.stack([np.cos(angles), np.sin(angles), angles * 0], axis=1)
    assert len(cut_polygons(ring, [np.arange(MAX_CORNERS)[None]]).faces) == MAX_CORNERS - 2
    with pytest.raises(Malformed, match="a face has 10001 corners; at most 10000"):
        cut_polygons(ring, [np.arange(MAX_CORNERS + 1)[None]])


def test_work_on_concave_polygons_is_bounded_and_convex_ones_are_free(monkeypatch):
    flat = comb(30)
    corners = np.concatenate([flat, flat[:, :1] * 0], axis=1)
    many = np.tile(np.arange(63), (10, 1))
    assert len(cut_polygons(corners, [many]).faces) == 610
    monkeypatch.setattr(polygons, "_WORK", 10 * 63**2 - 1)
    with pytest.raises(Malformed, match="too many corners to be cut, one of them 63; triangulate it first"):
        cut_polygons(corners, [many])
    assert len(cut_polygons(corners, [many[:9]]).faces) == 549
    angles = np.arange(63) / 63 * 2 * np.pi
    ring = np.stack([np.cos(angles), np.sin(angles), angles * 0], axis=1)
    assert len(cut_polygons(ring, [many]).faces) == 610


@pytest.mark.parametrize(("corners", "wrong"), [([0, 1, 3], 3), ([2, -1, 1], -1), ([0, 2**40, 2], 2**40)])
def test_corners_that_are_no_vertices_are_named(corners, wrong):
    with pytest.raises(Malformed, match=f"refers to vertex {wrong}; there are 3"):
        cut_polygons(np.eye(3), [np.array([corners])])


# -- polygons that cross themselves ------------------------------------------------------------------------------------

BOW_TIE = [(0, 0), (1, 1), (1, 0), (0, 1)]  # its two loops are equal, and so without a normal
UNEVEN = [(0, 0), (3, 3), (3, 0), (0, 1)]
REPEATED = [(0, 0), (3, 1), (3, -1), (0, 0), (-1, 1), (-1, -1)]  # one loop left, one loop right of a common corner


@pytest.mark.parametrize("flat", [BOW_TIE, UNEVEN, REPEATED])
def test_what_crosses_itself_is_refused_where_it_is_all_there_is(flat):
    for start in range(len(flat)):
        vertices = np.roll(np.array([(*corner, 0) for corner in flat], float), start, axis=0)
        with pytest.raises(Malformed, match="1 of its faces cross themselves, 100% of its area; triangulate it"):
            cut_polygons(vertices, [np.arange(len(flat))[None]])


@pytest.mark.parametrize("flat", [BOW_TIE, UNEVEN, REPEATED])
def test_what_crosses_itself_is_fanned_and_counted_up_to_one_percent(flat):
    corners = np.array([(*corner, 0) for corner in flat], float)
    fan = sum(abs(shoelace(corners[[0, j, j + 1], :2])) for j in range(1, len(flat) - 1))
    for share, refused in ((0.0099, False), (0.0101, True)):
        side = np.sqrt(fan / share - fan)  # of a square that has all the rest of the area
        square = np.array([(0, 0, 0), (side, 0, 0), (side, side, 0), (0, side, 0)])
        vertices = np.concatenate([corners, square])
        groups = [np.arange(len(flat))[None], np.arange(len(flat), len(flat) + 4)[None]]
        if refused:
            with pytest.raises(Malformed, match="1 of its faces cross themselves, 1% of its area"):
                cut_polygons(vertices, groups)
        else:
            cut = cut_polygons(vertices, groups)
            assert cut.notes == {"faces that cross themselves": 1}
            assert cut.owners.tolist().count(0) == len(flat) - 2


# -- the readers that cut ----------------------------------------------------------------------------------------------

NOTCHED = SHAPES["arrow head"]


def text_of(form: str) -> bytes:
    """The arrow head as a file of one face."""
    corners = [f"{x:g} {y:g} 0" for x, y in NOTCHED]
    if form == "obj":
        return "\n".join([*(f"v {corner}" for corner in corners), "f 1 2 3 4 5", ""]).encode()
    body = "\n".join([*corners, "5 0 1 2 3 4", ""])
    if form == "off":
        return f"OFF\n5 1 0\n{body}".encode()
    axes = "".join(f"property float {axis}\n" for axis in "xyz")
    head = f"ply\nformat ascii 1.0\nelement vertex 5\n{axes}element face 1\nproperty list uchar int vertex_indices\n"
    return f"{head}end_header\n{body}".encode()


@pytest.mark.parametrize(("form", "read"), [("obj", read_obj), ("off", read_off), ("ply", read_ply)])
def test_every_reader_of_polygons_cuts_them(tmp_path, form, read):
    surface = read(text_of(form), tmp_path / f"a.{form}", ReadOptions())
    check_cut(surface.vertices[:, :2], surface.faces, 1e-9)
