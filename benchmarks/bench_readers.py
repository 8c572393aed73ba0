"""Readers of mesh and cloud files beside libraries' own: ``python -m benchmarks readers``.

Each format holds the same shapes, made here: many small ones, as corpora of objects have, and a few large ones, as
scans are. In every round the floor (reading the bytes), our reader and the library's read all files in turn; ratios are
of one round, and their median counts, so that a machine that others use too does not tilt them. Answers are compared
first.
"""

import argparse
import importlib
import io
import json
import statistics
import struct
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._table import environment
from pipeline.corpora import open_corpus
from pipeline.corpora.files import read_geometry
from pipeline.corpora.formats.geometry import Surface
from pipeline.corpora.surface import triangle_areas

__all__ = ["main"]

RESULTS = Path(__file__).parent / "results" / "readers.jsonl"
TOLERANCE = 1e-5  # of area, or of coordinates: float32 and six digits of text

Mesh = tuple[np.ndarray, np.ndarray]
"""vertices [M, 3] float32, faces [F, 3] int32"""


# -- shapes ------------------------------------------------------------------------------------------------------------


def small_meshes(count: int) -> list[Mesh]:
    """Synthetic objects: about a thousand triangles."""
    corpus = open_corpus(f"synthetic:?count={count}&seed=1", points=32)
    found = []
    for index in range(count):
        parts = [part.mesh for part in corpus.parts(index)]  # type: ignore[attr-defined]
        starts = np.cumsum([0, *(len(part.vertices) for part in parts)])
        faces = np.concatenate([part.faces + start for part, start in zip(parts, starts, strict=False)])
        found.append((np.concatenate([part.vertices for part in parts]).astype(np.float32), faces.astype(np.int32)))
    return found


def large_meshes(count: int, side: int) -> list[Mesh]:
    """A rough height field of 2 (side - 1)^2 triangles."""
    found = []
    for index in range(count):
        x, y = np.meshgrid(np.linspace(0, 1, side), np.linspace(0, 1, side), indexing="ij")
        z = np.random.default_rng(index).normal(size=x.shape) / side
        corner = np.arange(side * side).reshape(side, side)
        a, b, c, d = corner[:-1, :-1], corner[1:, :-1], corner[1:, 1:], corner[:-1, 1:]
        faces = np.concatenate([np.stack([a, b, c], -1).reshape(-1, 3), np.stack([a, c, d], -1).reshape(-1, 3)])
        found.append((np.stack([x, y, z], -1).reshape(-1, 3).astype(np.float32), faces.astype(np.int32)))
    return found


# -- files -------------------------------------------------------------------------------------------------------------


def _rows(array: np.ndarray, form: str) -> str:
    file = io.StringIO()
    np.savetxt(file, array, fmt=form)
    return file.getvalue()


def off(mesh: Mesh) -> bytes:
    vertices, faces = mesh
    return f"OFF\n{len(vertices)} {len(faces)} 0\n{_rows(vertices, '%.7g')}{_rows(faces, '3 %d %d %d')}".encode()


def obj(mesh: Mesh) -> bytes:
    vertices, faces = mesh
    return (_rows(vertices, "v %.7g %.7g %.7g") + _rows(faces + 1, "f %d %d %d")).encode()


def stl_ascii(mesh: Mesh) -> bytes:
    corners = mesh[0][mesh[1]].reshape(-1, 9)
    vertex = "vertex %.7g %.7g %.7g\n"
    facet = f"facet normal 0 0 0\nouter loop\n{vertex * 3}endloop\nendfacet"
    return f"solid made\n{_rows(corners, facet)}endsolid made\n".encode()


def stl_binary(mesh: Mesh) -> bytes:
    corners = mesh[0][mesh[1]]
    rows = np.zeros(len(corners), np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("more", "<u2")]))
    rows["corners"] = corners
    return bytes(80) + struct.pack("<I", len(rows)) + rows.tobytes()


def _ply(mesh: Mesh, form: str) -> bytes:
    vertices, faces = mesh
    head = ["ply", f"format {form} 1.0", f"element vertex {len(vertices)}", *(f"property float {k}" for k in "xyz")]
    head += [f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header", ""]
    return "\n".join(head).encode()


def ply_ascii(mesh: Mesh) -> bytes:
    return _ply(mesh, "ascii") + (_rows(mesh[0], "%.7g") + _rows(mesh[1], "3 %d %d %d")).encode()


def ply_binary(mesh: Mesh) -> bytes:
    rows = np.zeros(len(mesh[1]), np.dtype([("count", "u1"), ("corners", "<i4", 3)]))
    rows["count"], rows["corners"] = 3, mesh[1]
    return _ply(mesh, "binary_little_endian") + mesh[0].astype("<f4").tobytes() + rows.tobytes()


def glb(mesh: Mesh) -> bytes:
    vertices, faces = mesh[0].astype("<f4").tobytes(), mesh[1].astype("<u4").tobytes()
    document = {
        "asset": {"version": "2.0"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "indices": 1, "mode": 4}]}],
        "buffers": [{"byteLength": len(vertices) + len(faces)}],
        "bufferViews": [
            {"buffer": 0, "byteOffset": 0, "byteLength": len(vertices)},
            {"buffer": 0, "byteOffset": len(vertices), "byteLength": len(faces)},
        ],
        "accessors": [
            {"bufferView": 0, "componentType": 5126, "count": len(mesh[0]), "type": "VEC3",
             "min": mesh[0].min(axis=0).tolist(), "max": mesh[0].max(axis=0).tolist()},
            {"bufferView": 1, "componentType": 5125, "count": mesh[1].size, "type": "SCALAR"},
        ],
    }  # fmt: skip
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    body = struct.pack("<I4s", len(text), b"JSON") + text
    body += struct.pack("<I4s", len(vertices) + len(faces), b"BIN\0") + vertices + faces
    return struct.pack("<4sII", b"glTF", 2, 12 + len(body)) + body


def xyz(mesh: Mesh) -> bytes:
    return _rows(mesh[0], "%.7g").encode()


def npy(mesh: Mesh) -> bytes:
    file = io.BytesIO()
    np.save(file, mesh[0])
    return file.getvalue()


def _pcd(mesh: Mesh, form: str) -> bytes:
    n = len(mesh[0])
    head = f"VERSION .7\nFIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nCOUNT 1 1 1\nWIDTH {n}\nHEIGHT 1\n"
    return f"{head}VIEWPOINT 0 0 0 1 0 0 0\nPOINTS {n}\nDATA {form}\n".encode()


def pcd_ascii(mesh: Mesh) -> bytes:
    return _pcd(mesh, "ascii") + xyz(mesh)


def pcd_binary(mesh: Mesh) -> bytes:
    return _pcd(mesh, "binary") + mesh[0].astype("<f4").tobytes()


# -- libraries ---------------------------------------------------------------------------------------------------------


def with_trimesh(path: Path) -> Mesh:
    import trimesh

    mesh = trimesh.load_mesh(path, process=False)
    return np.asarray(mesh.vertices), np.asarray(mesh.faces)


def with_plyfile(path: Path) -> Mesh:
    import plyfile

    data = plyfile.PlyData.read(path)
    vertex, face = data["vertex"], data["face"]
    return np.stack([vertex[k] for k in "xyz"], axis=1), np.stack(face["vertex_indices"])


def with_pypcd4(path: Path) -> Mesh:
    import pypcd4

    return pypcd4.PointCloud.from_path(path).numpy(("x", "y", "z")), np.empty((0, 3), int)


def with_loadtxt(path: Path) -> Mesh:
    return np.loadtxt(path), np.empty((0, 3), int)


def with_load(path: Path) -> Mesh:
    return np.load(path, allow_pickle=False), np.empty((0, 3), int)


@dataclass(frozen=True)
class Kind:
    """A format: how it is written, the ending of its files, and who else reads it ((name, package, function))."""

    write: Callable[[Mesh], bytes]
    suffix: str
    others: tuple[tuple[str, str, Callable[[Path], Mesh]], ...]


_TRIMESH = ("trimesh", "trimesh", with_trimesh)
KINDS = {
    "OFF": Kind(off, ".off", (_TRIMESH,)),
    "OBJ": Kind(obj, ".obj", (_TRIMESH,)),
    "STL ascii": Kind(stl_ascii, ".stl", (_TRIMESH,)),
    "STL binary": Kind(stl_binary, ".stl", (_TRIMESH,)),
    "PLY ascii": Kind(ply_ascii, ".ply", (_TRIMESH, ("plyfile", "plyfile", with_plyfile))),
    "PLY binary": Kind(ply_binary, ".ply", (_TRIMESH, ("plyfile", "plyfile", with_plyfile))),
    "GLB": Kind(glb, ".glb", (_TRIMESH,)),
    "XYZ text": Kind(xyz, ".xyz", (("numpy.loadtxt", "numpy", with_loadtxt),)),
    "NPY": Kind(npy, ".npy", (("numpy.load", "numpy", with_load),)),
    "PCD ascii": Kind(pcd_ascii, ".pcd", (("pypcd4", "pypcd4", with_pypcd4),)),
    "PCD binary": Kind(pcd_binary, ".pcd", (("pypcd4", "pypcd4", with_pypcd4),)),
}


# -- measuring ---------------------------------------------------------------------------------------------------------


def ours(path: Path) -> Mesh:
    found = read_geometry(path)
    return (found.vertices, found.faces) if isinstance(found, Surface) else (found.points, np.empty((0, 3), int))


def plain(path: Path) -> bytes:
    return path.read_bytes()


def check(path: Path, expected: Mesh, read: Callable[[Path], Mesh]) -> None:
    """Raise AssertionError unless a reader gives this mesh's area and box, or this cloud."""
    vertices, faces = read(path)
    if not len(faces):
        np.testing.assert_allclose(vertices, expected[0], rtol=0, atol=TOLERANCE * np.abs(expected[0]).max())
        return
    assert len(faces) == len(expected[1]), f"{path.name}: {len(faces)} triangles; expected {len(expected[1])}"
    areas = [float(triangle_areas(v.astype(float), f).sum()) for v, f in ((vertices, faces), expected)]
    np.testing.assert_allclose(areas[0], areas[1], rtol=TOLERANCE)


def seconds(read: Callable[[Path], Any], paths: Sequence[Path]) -> float:
    begun = time.perf_counter()
    for path in paths:
        read(path)
    return time.perf_counter() - begun


def rows(folder: Path, shapes: dict[str, list[Mesh]], wanted: Sequence[str], rounds: int) -> Iterator[dict[str, Any]]:
    for name in wanted:
        kind = KINDS[name]
        for size, meshes in shapes.items():
            paths = []
            for number, mesh in enumerate(meshes):
                path = folder / f"{name.replace(' ', '-')}-{size}-{number:03d}{kind.suffix}"
                path.write_bytes(kind.write(mesh))
                check(path, mesh, ours)
                paths.append(path)
            total = sum(path.stat().st_size for path in paths)
            readers: dict[str, Callable[[Path], Any]] = {"floor": plain, "ours": ours}
            absent = []
            for label, package, read in kind.others:
                try:
                    importlib.import_module(package)
                except ImportError:
                    absent.append(f"{label}: not run, it is not installed (pip install {package})")
                    continue
                check(paths[0], meshes[0], read)
                readers[label] = read
            times: dict[str, list[float]] = {label: [] for label in readers}
            for _ in range(rounds):
                for label, read in readers.items():
                    times[label].append(seconds(read, paths))
            yield {
                "format": name,
                "files": f"{len(paths)} {size}",
                "bytes": total / len(paths),
                "rates": {label: len(paths) / statistics.median(spent) for label, spent in times.items()},
                "ratios": {
                    label: np.quantile(np.divide(times[label], times["ours"]), (0.2, 0.5, 0.8)).tolist()
                    for label in readers
                    if label not in ("floor", "ours")
                },
                "absent": absent,
            }
            for path in paths:
                path.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--formats", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--small", type=int, default=48, help="objects of about a thousand triangles")
    parser.add_argument("--large", type=int, default=2, help="height fields")
    parser.add_argument("--side", type=int, default=230, help="vertices along each side of a height field")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    shapes = {"small": small_meshes(options.small), "large": large_meshes(options.large, options.side)}
    print("\n### Readers: files and bytes a second, one thread, files in the page cache\n")
    print(
        "| format | files | kB each | floor MB/s | ours files/s | ours MB/s | share of floor | baseline | its files/s "
        "| ratio (p20-p80) |"
    )
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | --- | ---: | ---: |")
    kept = []
    with tempfile.TemporaryDirectory() as folder:
        for row in rows(Path(folder), shapes, options.formats, options.rounds):
            kept.append(row)
            print_row(row)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"title": "readers", "environment": environment(), "rows": kept}, sort_keys=True) + "\n")


def _rate(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def print_row(row: dict[str, Any]) -> None:
    """A line for each library that reads the format, or could not be run."""
    rates, each = row["rates"], row["bytes"]
    head = (
        f"| {row['format']} | {row['files']} | {each / 1e3:.0f} | {rates['floor'] * each / 1e6:.0f} "
        f"| {_rate(rates['ours'])} | {rates['ours'] * each / 1e6:.1f} | {rates['ours'] / rates['floor']:.1%} "
    )
    for label, (low, middle, high) in row["ratios"].items():
        print(f"{head}| {label} | {_rate(rates[label])} | {middle:.2f}x ({low:.2f}-{high:.2f}) |", flush=True)
    for reason in row["absent"]:
        print(f"{head}| {reason} | - | - |", flush=True)


if __name__ == "__main__":
    main()
