"""Which library reads which files right: ``python -m benchmarks.compare_readers DIR``.

DIR holds files and an expected.json, {path below DIR: value}, worked out by neither of the readers:

    {"chair/a.obj": {"area": 22.0, "bbox_min": [0, 0, 0], "bbox_max": [1, 2, 3]},
     "scan.ply":    {"points": 2048, "bbox_min": [...], "bbox_max": [...], "tolerance": 0.03},
     "odd.glb":     {"expected": "refused"}}

area         of all triangles or polygons; anything between it and area_earclip, where polygons are not flat
bbox_min, bbox_max  of the vertices that faces use, or of the points; the axes and units of the file; either or both may
             be absent, and then is not compared
points       of a cloud that holds no more than them
tolerance    share of the largest side of the box, and of the area; 0.001 where it is absent

A verdict is `right`, `wrong` (a geometry that is not the file's, without an exception), `empty` (one that holds
nothing), `refused` (an exception; right where "refused" is expected), `crashed` (the process ended, or took longer than
a minute) or `none` (the library does not read such files). Each library runs in a process of its own, the files one
after the other, each read as its documentation says how to read a whole file, with its transforms applied. Libraries
that are not installed are left out.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SECONDS = 60  # a file may take, the start of the library included
TOLERANCE = 1e-3


@dataclass
class Found:
    """A geometry: points [M, 3] that count, and the area of what lies between them (None: it is a cloud)."""

    points: np.ndarray
    area: float | None = None


@dataclass(frozen=True)
class Library:
    """read  a file's path -> Found; imports the library. package: its name in the registry. suffixes: what it reads."""

    read: Callable[[str], Found]
    package: str
    module: str
    suffixes: tuple[str, ...]


class _Impossible(Exception):
    """A library returned a geometry that cannot be."""


def _triangles(vertices: Any, faces: Any) -> Found:
    vertices, faces = np.asarray(vertices, np.float64).reshape(-1, 3), np.asarray(faces, np.int64).reshape(-1, 3)
    if not len(faces):
        return Found(vertices)
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise _Impossible(f"a face of vertex {faces.max()}, of {len(vertices)}")
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    area = float(np.sqrt((np.cross(b - a, c - a) ** 2).sum(axis=1)).sum() / 2)
    return Found(vertices[np.unique(faces)], area)


def _joined(found: list[Found]) -> Found:
    meshes = [one for one in found if one.area is not None] or found or [Found(np.empty((0, 3)))]
    areas = [one.area for one in meshes if one.area is not None]
    return Found(np.concatenate([one.points for one in meshes]), sum(areas) if areas else None)


def _polygon_area(corners: np.ndarray) -> float:
    """Newell's: right for flat polygons of any form."""
    return float(np.sqrt((np.cross(corners, np.roll(corners, -1, axis=0)).sum(axis=0) ** 2).sum()) / 2)


# -- libraries ---------------------------------------------------------------------------------------------------------


def ours(path: str) -> Found:
    from pipeline.corpora.files import read_geometry
    from pipeline.corpora.formats.geometry import Surface, sample_geometry

    geometry = read_geometry(Path(path))
    sample_geometry(geometry, count=64, seed=0, id="a", source=path, repeat=True)  # what is refused, is refused here
    if isinstance(geometry, Surface):
        return _triangles(geometry.vertices, geometry.faces)
    return Found(np.asarray(geometry.points, np.float64))


def trimesh(path: str) -> Found:
    import trimesh

    scene = trimesh.load_scene(path, process=False)
    found = []
    for geometry in scene.dump():
        if isinstance(geometry, trimesh.Trimesh):
            found.append(_triangles(geometry.vertices, geometry.faces))
        elif isinstance(geometry, trimesh.PointCloud):
            found.append(Found(np.asarray(geometry.vertices, np.float64)))
    return _joined(found)


def meshio(path: str) -> Found:
    import meshio

    mesh = meshio.read(path)
    points, found = np.asarray(mesh.points, np.float64), []
    points = np.pad(points, ((0, 0), (0, 3 - points.shape[1])))  # it drops a column of zeros
    for block in mesh.cells:
        if block.type in ("triangle", "quad", "polygon"):
            for cell in block.data:
                corners = points[np.asarray(cell)]
                found.append(Found(corners, _polygon_area(corners)))
    return _joined(found) if found else Found(points)


def pymeshlab(path: str) -> Found:
    import pymeshlab

    meshes = pymeshlab.MeshSet(verbose=False)
    meshes.load_new_mesh(path)
    return _joined([_triangles(mesh.transformed_vertex_matrix(), mesh.face_matrix()) for mesh in meshes])


def assimp(path: str) -> Found:
    import assimp_py as library

    scene = library.import_file(path, library.Process_Triangulate | library.Process_PreTransformVertices)
    return _joined([_triangles(mesh.vertices, mesh.indices) for mesh in scene.meshes])


def open3d(path: str) -> Found:
    import open3d as library

    if path.lower().endswith((".pcd", ".xyz", ".pts", ".txt")):
        return Found(np.asarray(library.io.read_point_cloud(path).points))
    if path.lower().endswith(".ply") and b"element face" not in Path(path).read_bytes()[:4096]:
        return Found(np.asarray(library.io.read_point_cloud(path).points))
    mesh = library.io.read_triangle_mesh(path)
    return _triangles(mesh.vertices, mesh.triangles)


def plyfile(path: str) -> Found:
    import plyfile as library

    data = library.PlyData.read(path)
    vertex = data["vertex"]
    points = np.stack([vertex[axis] for axis in "xyz"], axis=-1).astype(np.float64)
    if "face" not in data:
        return Found(points)
    names = {one.name for one in data["face"].properties}
    corners = [points[one] for one in data["face"]["vertex_indices" if "vertex_indices" in names else "vertex_index"]]
    return _joined([Found(one, _polygon_area(one)) for one in corners])


_MESHES = (".off", ".obj", ".ply", ".stl")
_SCENES = (*_MESHES, ".glb", ".gltf")
LIBRARIES = {
    "this project": Library(ours, "i2p-pretrain", "pipeline", ()),
    "trimesh": Library(trimesh, "trimesh", "trimesh", (*_SCENES, ".xyz", ".3mf", ".dae")),
    "assimp": Library(assimp, "assimp-py", "assimp_py", (*_SCENES, ".3mf", ".dae", ".fbx")),
    "pymeshlab": Library(pymeshlab, "pymeshlab", "pymeshlab", (*_SCENES, ".xyz", ".pts", ".txt", ".3mf", ".dae")),
    "meshio": Library(meshio, "meshio", "meshio", _MESHES),
    "open3d": Library(open3d, "open3d", "open3d", (*_SCENES, ".xyz", ".pts", ".pcd", ".txt")),
    "plyfile": Library(plyfile, "plyfile", "plyfile", (".ply",)),
}


# -- the process of one library ----------------------------------------------------------------------------------------


def _serve(name: str) -> None:
    """Answer each path on standard input with a line of JSON."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print
    library = LIBRARIES[name]
    importlib.import_module(library.module)
    if name == "this project":
        importlib.import_module("pipeline.corpora.files")
    print(json.dumps({"started": True}), file=out, flush=True)
    for line in sys.stdin:
        path = json.loads(line)
        Path("/proc/self/clear_refs").write_text("5")  # the peak of memory counts from here
        before, start = _status("VmRSS"), time.perf_counter()
        answer: dict[str, Any] = {}
        try:
            found = library.read(path)
            box = [found.points.min(axis=0).tolist(), found.points.max(axis=0).tolist()] if len(found.points) else None
            answer = {"area": found.area, "points": len(found.points), "box": box}
        except _Impossible as error:
            answer = {"impossible": str(error)}
        except BaseException as error:  # whatever it raises, Rust's panics too, is its way to say no
            answer = {"refused": f"{type(error).__name__}: {error}"[:200]}
        answer |= {"seconds": time.perf_counter() - start, "bytes": max(0, _status("VmHWM") - before)}
        print(json.dumps(answer), file=out, flush=True)


def _status(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def answers(name: str, root: Path, paths: list[str]) -> dict[str, dict[str, Any]]:
    """What a library says to each file; {"crashed": why} where its process ended or went on too long."""
    found: dict[str, dict[str, Any]] = {}
    left = list(paths)
    while left:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.compare_readers", "--serve", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        if not process.stdout.readline():
            process.wait()
            return {}  # it cannot be imported
        while left:
            clock = threading.Timer(SECONDS, process.kill)
            clock.start()
            try:
                process.stdin.write(json.dumps(str(root / left[0])) + "\n")
                process.stdin.flush()
                line = process.stdout.readline()
            except OSError:
                line = ""
            clock.cancel()
            path = left.pop(0)
            if not line:
                found[path] = {"crashed": f"signal {-process.wait()}"}
                break
            found[path] = json.loads(line)
        process.stdin.close()
        process.wait()
    return found


# -- verdicts ----------------------------------------------------------------------------------------------------------


def verdict(said: dict[str, Any], wanted: dict[str, Any]) -> tuple[str, str]:
    """`right`, `wrong`, `empty`, `refused` or `crashed`, and why."""
    if "crashed" in said:
        return "crashed", said["crashed"]
    refusal = str(wanted.get("expected", "")).startswith("refused")
    if "refused" in said:
        return ("right" if refusal else "refused"), said["refused"]
    if "impossible" in said:
        return "wrong", said["impossible"]
    if said["box"] is None or ("area" in wanted and said["area"] == 0):
        return "empty", "holds nothing"
    if refusal:
        return "wrong", "it has to be refused"
    share = wanted.get("tolerance", TOLERANCE)
    low, high = np.array(said["box"])
    bounds = {key: np.array(wanted[key]) for key in ("bbox_min", "bbox_max") if key in wanted}
    corners = np.stack(list(bounds.values()) or [np.zeros(3)])
    side = float((np.ptp(corners, axis=0) if len(corners) == 2 else np.abs(corners)).max())
    for key, value in (("bbox_min", low), ("bbox_max", high)):
        if key in bounds and not np.allclose(value, bounds[key], rtol=0, atol=share * side):
            return "wrong", f"{key} {np.round(value, 4).tolist()}, right {np.round(wanted[key], 4).tolist()}"
    if "area" in wanted:
        least, most = sorted([wanted["area"], wanted.get("area_earclip", wanted["area"])])
        if said["area"] is None:
            return "wrong", "no faces"
        if not least * (1 - share) <= said["area"] <= most * (1 + share):
            return "wrong", f"area {said['area']:.6g}, right {least:.6g}"
    if "points" in wanted and (said["area"] is not None or said["points"] != wanted["points"]):
        return "wrong", f"{said['points']} points, right {wanted['points']}"
    return "right", ""


def installed_size(package: str) -> float | None:
    """MB of a package's own files, without what it depends on; None where it is not installed as one."""
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    return sum(path.stat().st_size for path in (Path(str(file.locate())) for file in files) if path.is_file()) / 1e6


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--json", type=Path, help="write every verdict to this file")
    given = parser.parse_args(arguments)
    wanted: dict[str, dict[str, Any]] = json.loads((given.folder / "expected.json").read_text(encoding="utf-8"))
    wanted = {path: value for path, value in wanted.items() if {"area", "bbox_max", "points", "expected"} & set(value)}
    print(
        "| library | right | wrong | empty | refused | crashed | none | p50 ms | longest ms | most MB | installed MB |"
    )
    print("| --- |" + " ---: |" * 10)
    report: dict[str, Any] = {}
    for name, library in LIBRARIES.items():
        if importlib.util.find_spec(library.module) is None:
            print(f"| {name} | not installed |")
            continue
        paths = [path for path in wanted if not library.suffixes or Path(path).suffix.lower() in library.suffixes]
        said = answers(name, given.folder.resolve(), paths)
        if not said:
            print(f"| {name} | cannot be imported here |")
            continue
        verdicts = {path: verdict(said[path], wanted[path]) for path in paths}
        counts = Counter(word for word, _ in verdicts.values())
        times = [1e3 * said[path]["seconds"] for path in paths if verdicts[path][0] == "right"] or [float("nan")]
        most = max((said[path].get("bytes", 0) for path in paths), default=0) / 1e6
        size = installed_size(library.package) if name != "this project" else None
        found = " | ".join(str(counts[word]) for word in ("right", "wrong", "empty", "refused", "crashed"))
        print(
            f"| {name} | {found} | "
            f"{len(wanted) - len(paths)} | {statistics.median(times):.1f} | {max(times):.0f} | {most:.0f} | "
            f"{'-' if size is None else f'{size:.0f}'} |",
            flush=True,
        )
        report[name] = {path: [*verdicts[path], said[path].get("seconds")] for path in paths}
    for name, verdicts in report.items():
        for word in ("wrong", "crashed"):
            listed = [f"{path}: {why}" for path, (held, why, _) in verdicts.items() if held == word]
            if listed:
                print(f"\n{name}, {word}:\n" + "\n".join(f"- {line}" for line in listed))
    if given.json:
        given.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        _serve(sys.argv[2])
    else:
        sys.exit(main(sys.argv[1:]))
