"""Readers of files: the same cube and ball from every format, and each way for a file to be wrong."""

import json
import struct
import zipfile

import numpy as np
import pytest

from pipeline.corpora import ShapeError, open_corpus
from pipeline.corpora.files import READERS, read_geometry
from pipeline.corpora.formats import numpy_files
from pipeline.corpora.formats.geometry import Cloud, Surface
from pipeline.corpora.surface import sample_surface, triangle_areas
from tests.support.corpora import CUBE_FACES, CUBE_VERTICES, ball, cube_ply, cube_stl, cube_text
from tests.support.reference import shared_dir


def glb() -> bytes:
    """The cube as a GLB, scaled by a node to twice its size."""
    positions = CUBE_VERTICES.astype("<f4").tobytes()
    indices = np.array(
        [(a, b, c) for f in CUBE_FACES for a, b, c in ((f[0], f[1], f[2]), (f[0], f[2], f[3]))], "<u2"
    ).tobytes()
    document = {
        "asset": {"version": "2.0"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "scale": [2, 2, 2]}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "indices": 1}]}],
        "accessors": [
            {"bufferView": 0, "componentType": 5126, "count": 8, "type": "VEC3", "min": [0, 0, 0], "max": [1, 1, 1]},
            {"bufferView": 1, "componentType": 5123, "count": 36, "type": "SCALAR"},
        ],
        "bufferViews": [
            {"buffer": 0, "byteOffset": 0, "byteLength": 96},
            {"buffer": 0, "byteOffset": 96, "byteLength": 72},
        ],
        "buffers": [{"byteLength": 168}],
    }
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    chunks = (
        struct.pack("<II", len(text), 0x4E4F534A) + text + struct.pack("<II", 168, 0x004E4942) + positions + indices
    )
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


MESHES = {
    "cube.off": (cube_text("off"), 6),
    "modelnet.OFF": (cube_text("modelnet-off"), 6),
    "colours.off": (cube_text("off").replace(b"OFF", b"COFF"), 6),
    "cube.obj": (cube_text("obj"), 6),
    "cube.ply": (cube_text("ply-ascii"), 6),
    "little.ply": (cube_ply("<"), 6),
    "big.ply": (cube_ply(">"), 6),
    "mixed.ply": (cube_ply("<", mixed=True), 6),
    "cube.stl": (cube_stl(), 6),
    "ascii.stl": (cube_stl(ascii=True), 6),
    "cube.glb": (glb(), 24),  # the node doubles every length
}


@pytest.mark.parametrize("name", MESHES)
def test_the_cube_comes_back_from_every_mesh_format(tmp_path, name):
    data, area = MESHES[name]
    (tmp_path / name).write_bytes(data)
    mesh = read_geometry(tmp_path / name)
    assert isinstance(mesh, Surface)
    assert triangle_areas(mesh.vertices, mesh.faces).sum() == pytest.approx(area)
    assert mesh.vertices.min() == 0
    shape = open_corpus(f"folder:{tmp_path}", points=4096)[0]
    low, high = shape.points.min(axis=0), shape.points.max(axis=0)
    assert np.allclose(low, 0, atol=0.02)
    assert np.allclose(high, (area / 6) ** 0.5, atol=0.04)


def pcd(points: np.ndarray, form: str) -> bytes:
    fields = f"VERSION .7\nFIELDS x y z rgb\nSIZE 4 4 4 4\nTYPE F F F U\nCOUNT 1 1 1 1\nWIDTH {len(points)}\nHEIGHT 1\n"
    header = f"# .PCD\n{fields}VIEWPOINT 0 0 0 1 0 0 0\nPOINTS {len(points)}\nDATA {form}\n".encode()
    if form == "ascii":
        return header + "".join(f"{x:.9g} {y:.9g} {z:.9g} 4278190080\n" for x, y, z in points).encode()
    return header + b"".join(struct.pack("<3fI", *point, 255) for point in points)


def cloud_file(path, points):
    """Write a cloud in the format that the file's name asks for."""
    text = [f"{x:.9g} {y:.9g} {z:.9g}" for x, y, z in points]
    match path.name:
        case "a.npy":
            np.save(path, np.concatenate([points, points], axis=1))  # with normals behind
        case "fortran.npy":
            np.save(path, np.asfortranarray(points.astype(np.float64)))
        case "a.npz":
            np.savez_compressed(path, points=points, other=np.arange(3))
        case "a.xyz":
            path.write_text("# x y z\n" + "\n".join(text))
        case "a.pts":
            path.write_text(f"{len(text)}\n" + "\n".join(text) + "\n")
        case "a.txt":
            path.write_text("\n".join(line.replace(" ", ",") + ",0,0,1" for line in text))
        case "a.ply":
            header = f"ply\nformat ascii 1.0\nelement vertex {len(text)}\n" + "".join(
                f"property double {a}\n" for a in "xyz"
            )
            path.write_text(header + "end_header\n" + "\n".join(text))
        case "a.off":
            path.write_text(f"OFF\n{len(text)} 0 0\n" + "\n".join(text))
        case "ascii.pcd" | "binary.pcd":
            path.write_bytes(pcd(points, path.stem))


@pytest.mark.parametrize(
    "name", ["a.npy", "fortran.npy", "a.npz", "a.xyz", "a.pts", "a.txt", "a.ply", "a.off", "ascii.pcd", "binary.pcd"]
)
def test_the_ball_comes_back_from_every_cloud_format(tmp_path, name):
    points = ball(300)
    cloud_file(tmp_path / name, points)
    cloud = read_geometry(tmp_path / name)
    assert isinstance(cloud, Cloud)
    assert np.asarray(cloud.points, np.float32).tobytes() == points.tobytes()
    shape = open_corpus(f"folder:{tmp_path}", points=128)[0]
    assert {p.tobytes() for p in shape.points} <= {p.tobytes() for p in points}


def test_points_are_uniform_over_the_surface():
    """A box of sides 1, 2, 3: each face gets points in proportion to its area."""
    faces = np.array([(f[0], f[j], f[j + 1]) for f in CUBE_FACES for j in (1, 2)])
    uniform = np.random.default_rng(0).random((60_000, 3))
    points, triangle = sample_surface(CUBE_VERTICES * (1, 2, 3), faces, uniform)
    share = np.bincount(triangle // 2, minlength=6) / 60_000
    assert np.allclose(share, np.array([6, 6, 3, 3, 2, 2]) / 22, atol=0.01)  # five deviations are 0.009
    on_top = points[triangle // 2 == 5]  # z = 3: uniform in x and y
    assert np.allclose(on_top.mean(axis=0), (0.5, 1, 3), atol=0.03)
    assert np.allclose(on_top.var(axis=0), (1 / 12, 4 / 12, 0), atol=0.02)


def npy_header(descr: str, shape: str) -> bytes:
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}}}"
    return b"\x93NUMPY\1\0\x76\0" + text.encode().ljust(117) + b"\n"


OFF = cube_text("off")
WRONG = {
    "empty.off": (b"", "the file is empty"),
    "lies.off": (b"OFF\n2000000000 2000000000 0\n0 0 0\n", "declares 2000000000 vertices .* 1 lines follow"),
    "short.off": (OFF[: len(OFF) // 2], "the file is truncated"),
    "word.off": (b"PLY\n1 2 3\n", "starts with 'PLY'; expected OFF"),
    "counts.off": (b"OFF\nmany few\n", "expected two whole numbers"),
    "index.off": (OFF.replace(b"4 1 5 7 3", b"4 1 5 9 3"), "a face refers to vertex 9; there are 8"),
    "fraction.off": (OFF.replace(b"4 1 5 7 3", b"4 1 5 1.5 3"), "not a whole number"),
    "letters.off": (OFF.replace(b"0 0 1", b"0 x 1"), r"line 4 \('0 x 1'\) is not made of numbers where a vertex"),
    "nan.off": (OFF.replace(b"0 0 1", b"0 nan 1"), "some vertices are not finite"),
    "flat.off": (b"OFF\n3 1 0\n0 0 0\n1 0 0\n2 0 0\n3 0 1 2\n", "the surface has area 0"),
    "huge.off": (OFF.replace(b"0 0 1", b"0 0 1e300"), "some vertices are not finite in float32"),
    "lies.ply": (
        cube_ply().replace(b"element vertex 8", b"element vertex 2000000000"),
        "declares 2000000000 of vertex, the file ends before",
    ),
    "short.ply": (cube_text("ply-ascii")[:-20], "declares 14 lines"),
    "half.ply": (cube_ply()[:-3], "declares 6 of face, the file ends before"),
    "digits.ply": (
        cube_text("ply-ascii").replace(b"vertex 8", b"vertex " + b"9" * 5000),
        "header line 'element vertex 9",
    ),
    "float.ply": (
        cube_text("ply-ascii").replace(b"list uchar", b"list float"),
        "length as float; expected a whole number",
    ),
    "nan.ply": (cube_text("ply-ascii").replace(b"4 0 1 3 2", b"4 nan 1 3 2"), "not a whole number"),
    "fraction.ply": (cube_text("ply-ascii").replace(b"4 0 1 3 2", b"4 0.5 1 3 2"), "not a whole number"),
    "none.ply": (b"solid", "has no PLY header"),
    "strips.ply": (cube_text("ply-ascii").replace(b"vertex_indices", b"vertex_strips"), "no list vertex_indices"),
    "short.stl": (cube_stl()[:-1], r"declares 12 triangles \(684 bytes\), the file has 683"),
    "short-ascii.stl": (cube_stl(ascii=True)[:-20], "neither a binary STL nor a complete ASCII one"),
    "binary.obj": (b"v 0 0\0", "is binary, not text"),
    "nothing.obj": (b"# nothing\n", "holds neither triangles nor points"),
    "short.glb": (glb()[:-10], "the header declares"),
    "wrong.glb": (b"PK\3\4" * 8, "does not start with glTF"),
    "escape.gltf": (
        b'{"asset":{"version":"2.0"},"buffers":[{"uri":"../../etc/passwd","byteLength":9}]}',
        "not a file beside it",
    ),
    "json.gltf": (b"{", "its JSON does not parse"),
    "raw.npy": (npy_header("|V4", "(6, 100)") + bytes(2400), "type .V4; expected numbers"),
    "object.npy": (npy_header("|O", "(64, 3)"), "type object; expected numbers"),
    "lies.npy": (npy_header("<f4", "(2000000000, 3)"), "declares .* 0 bytes follow"),
    "noise.npy": (bytes(range(256)), "does not start as a NPY file"),
    "noise.npz": (bytes(range(256)), "not a complete NPZ file"),
    "noise.txt": (bytes(range(256)), "is binary, not text"),
    "two.xyz": (b"1 2\n3 4\n", "line 1 has 2 columns; expected at least 3"),
    "ragged.xyz": (b"1 2 3\n4 5\n", "line 2 has 2 columns, the first has 3"),
    "count.pts": (b"3\n1 2 3\n4 5 6\n", "promise 3 points, 2 follow"),
    "words.csv": (b"u,v,w\n1,2,3\n", "names u, v, w; x, y and z are not all among them.*columns="),
    "header.pcd": (b"VERSION .7\nFIELDS x y z\n", "has no PCD header"),
    "size.pcd": (b"FIELDS x y z\nSIZE 4 4\nTYPE F F F\nPOINTS 9\nDATA ascii\n", "3 FIELDS, 2 SIZE"),
    "packed.pcd": (
        pcd(ball(40), "binary").replace(b"binary", b"binary_compressed"),
        r"declares \d+ bytes that unpack to",
    ),
    "short.pcd": (pcd(ball(40), "binary")[:-9], "declares 40 points, the file ends before"),
    "few.pcd": (pcd(ball(40), "ascii")[:-60], "declares 40 points"),
    **{f"noise.{name}": (bytes(range(256)), "starts neither as usda") for name in ("usd", "usda", "usdc", "usdz")},
    "noise.e57": (bytes(range(256)), "does not start with ASTM-E57"),
    "noise.dae": (bytes(range(256)), "is not XML"),
    "noise.3mf": (bytes(range(256)), "not a complete 3MF file"),
    "noise.las": (bytes(range(256)), "does not start with LASF"),
    "short.laz": (b"LASF" + bytes(96), "of 100 bytes; it ends within its header"),
}


@pytest.mark.parametrize("name", WRONG)
def test_each_way_to_be_wrong_is_named(tmp_path, name):
    data, reason = WRONG[name]
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(ShapeError, match=reason) as caught:
        open_corpus(f"folder:{tmp_path}", points=64)[0]
    assert caught.value.source == str(path)


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(numpy_files, "MAX_ARRAY_BYTES", 2**20)
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("points.npy", bytes(2**22))
    assert (tmp_path / "bomb.npz").stat().st_size < 2**13
    with pytest.raises(ShapeError, match="'points' unpacks to 4194304 bytes, more than the 1048576 allowed"):
        open_corpus(f"folder:{tmp_path}", points=64)[0]


def test_an_npz_without_points_says_what_it_holds(tmp_path):
    np.savez(tmp_path / "a.npz", xyz=ball(64), colour=ball(64))
    with pytest.raises(ShapeError, match="has no array 'points'; it holds xyz, colour"):
        open_corpus(f"folder:{tmp_path}", points=64)[0]


def test_files_that_nobody_here_wrote_are_read():
    """Meshes and clouds of the shared formats folder, ModelNet's malformed header included; others may join them."""
    corpus = open_corpus(f"folder:{shared_dir('data') / 'formats'}?pad=repeat&formats=off,obj,ply,stl,pcd", points=1024)
    known = {
        "labeled_psb/Chair/101.off",
        "modelnet40_off/bathtub/train/bathtub_0001.off",
        "modelnet40_off/bed/train/bed_0003.off",
        "modelnet40_off/chair/train/chair_0002.off",
        "obj/Guitar/D00023.obj",
        "obj/classic/beetle.obj",
        "obj/classic/woody.obj",
        "pcd/lidar_wall_4.pcd",
        "pcd/pcn_car.pcd",
        "pcd/pointr_airplane.pcd",
        "ply/pointr_input.ply",
        "shapenet_core/03001627/88382b877be91b2a572f8e1c1caad99e/models/model_normalized.obj",
        "stl/avion_fixed.stl",
    }
    places = {corpus.id(i): i for i in range(len(corpus))}
    assert known <= places.keys()
    for id in known:
        assert corpus[places[id]].points.shape == (1024, 3)


def test_every_extension_has_a_case_here():
    covered = {name.lower()[name.rindex(".") :] for name in (*MESHES, *WRONG)}
    assert covered == set(READERS)
