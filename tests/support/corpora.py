"""Small corpora and files for tests: a cube in every mesh format, a ball in every cloud format, whole folders."""

import struct
from pathlib import Path

import numpy as np

__all__ = ["CUBE_FACES", "CUBE_VERTICES", "ball", "cube_ply", "cube_stl", "cube_text", "write_npz"]

CUBE_VERTICES = np.array(
    [(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)], dtype=float
)  # unit cube, one corner at 0
CUBE_FACES = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]  # quads


def ball(n: int, seed: int = 0) -> np.ndarray:
    """n points on a stretched sphere [n, 3] float32."""
    points = np.random.default_rng(seed).normal(size=(n, 3))
    return (points / np.linalg.norm(points, axis=1, keepdims=True) * (1, 2, 3)).astype(np.float32)


def cube_text(form: str) -> bytes:
    """The cube as "off", "modelnet-off" (counts on the first line), "obj" or "ply-ascii"."""
    corners = [" ".join(f"{value:g}" for value in vertex) for vertex in CUBE_VERTICES]
    quads = [" ".join(map(str, (4, *face))) for face in CUBE_FACES]
    if form == "off":
        lines = ["OFF", "8 6 0", *corners, *quads]
    elif form == "modelnet-off":
        lines = ["OFF8 6 0", *corners, *quads]
    elif form == "obj":
        faces = ["f " + " ".join(f"{k + 1}//1" for k in face) for face in CUBE_FACES]
        lines = ["# a cube", "mtllib none.mtl", "vn 0 0 1", *(f"v {corner}" for corner in corners), *faces]
    else:
        header = [
            "ply",
            "format ascii 1.0",
            "comment a cube",
            "element vertex 8",
            "property float x",
            "property float y",
        ]
        header += ["property float z", "element face 6", "property list uchar int vertex_indices", "end_header"]
        lines = [*header, *corners, *quads]
    return ("\n".join(lines) + "\n").encode()


def cube_ply(order: str = "<", mixed: bool = False) -> bytes:
    """The cube as a binary PLY, with a colour a vertex; ``mixed``: one quad as two triangles (rows differ)."""
    faces = [(0, 1, 3), (0, 3, 2), *CUBE_FACES[1:]] if mixed else CUBE_FACES
    name = "binary_little_endian" if order == "<" else "binary_big_endian"
    header = f"ply\nformat {name} 1.0\nelement vertex 8\nproperty float x\nproperty float y\nproperty float z\n"
    header += f"property uchar red\nelement face {len(faces)}\nproperty list uchar int vertex_indices\n"
    header += "property uchar flag\nend_header\n"
    body = b"".join(struct.pack(f"{order}3fB", *vertex, 7) for vertex in CUBE_VERTICES)
    return (
        header.encode() + body + b"".join(struct.pack(f"{order}B{len(face)}iB", len(face), *face, 1) for face in faces)
    )


def cube_stl(ascii: bool = False) -> bytes:
    """The cube as an STL of twelve triangles."""
    triangles = [CUBE_VERTICES[[face[0], face[j], face[j + 1]]] for face in CUBE_FACES for j in (1, 2)]
    if ascii:
        facets = [
            "facet normal 0 0 0\nouter loop\n"
            + "".join(f"  vertex {x:g} {y:g} {z:g}\n" for x, y, z in t)
            + "endloop\nendfacet\n"
            for t in triangles
        ]
        return ("solid cube\n" + "".join(facets) + "endsolid cube\n").encode()
    rows = [struct.pack("<12fH", 0, 0, 0, *triangle.reshape(-1), 0) for triangle in triangles]
    return b"made by a test".ljust(80, b"\0") + struct.pack("<I", len(rows)) + b"".join(rows)


def write_npz(path: Path, n: int = 6, size: int = 128, **changes: np.ndarray) -> Path:
    """A small file for ``npz:``: two classes, every third shape a test shape; ``changes`` replace or add arrays."""
    arrays = {
        "points": np.stack([ball(size, seed) for seed in range(n)]).astype(np.float16),
        "label": np.arange(n) % 2,
        "label_names": np.array(["even", "odd"]),
        "split": np.array(["test" if k % 3 == 2 else "train" for k in range(n)]),
        "ids": np.array([f"thing/{k}" for k in range(n)]),
        "part": (np.arange(n * size).reshape(n, size) % 3).astype(np.uint8),
        "part_names": np.array(["a", "b", "c"]),
    }
    np.savez(path, **{**arrays, **changes})
    return path
