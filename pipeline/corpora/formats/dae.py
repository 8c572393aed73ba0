"""COLLADA 1.4 (dae), read by pycollada: the meshes of the file's scene, where its nodes place them.

Source: Khronos Group, COLLADA Digital Asset Schema Specification 1.4.1.
"""

import io
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.corpora.formats.geometry import Cloud, Malformed, ReadOptions, Surface
from pipeline.corpora.formats.isolated import decode as decode_apart
from pipeline.corpora.formats.isolated import errors_of, need
from pipeline.corpora.formats.placed import Placed
from pipeline.corpora.formats.polygons import cut_polygons
from pipeline.corpora.formats.xml_text import check_xml

__all__ = ["decode", "prepare", "read_dae"]

MAX_DEPTH = 100  # nodes within nodes
REMEDY = "export it as triangles (Blender and MeshLab do)"
# Elements that change or add geometry and that pycollada passes over.
_UNREAD = ("instance_controller", "skew", "ph", "convex_mesh", "spline", "brep")
_AXES = {"X_UP": "x", "Y_UP": "y", "Z_UP": "z"}


def read_dae(data: bytes, path: Path, options: ReadOptions) -> Surface | Cloud:
    """Read every mesh of the scene, once per node that draws it, in the file's unit and axes.

    Lines are left out and counted. Skins, skewed nodes, polygons with holes of their own and parts in other files are
    refused. ``parts=node`` gives the nodes' names.
    """
    if options.parts not in ("", "node"):
        raise Malformed(f"parts={options.parts} was requested; a DAE file has parts by node")
    if not data.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<") and data[:2] not in (b"\xff\xfe", b"\xfe\xff"):
        raise Malformed("is not XML")
    need("collada", "is a DAE file")
    return decode_apart(__name__, data, path, options)


def prepare() -> None:
    """Import what `decode` needs."""
    import collada  # noqa: F401


def decode(data: bytes, path: Path, options: ReadOptions) -> Surface:
    """Decode a surface from the bytes of a DAE file."""
    import collada

    check_xml(data, "it")
    _check_elements(ElementTree.fromstring(data))
    with errors_of("pycollada"):
        document = collada.Collada(io.BytesIO(data), aux_file_loader=lambda name: None)  # opens no texture
        if document.scene is None:
            raise Malformed("has no scene; its libraries by themselves place nothing")
        placed = Placed(parts=bool(options.parts))
        axis = _AXES.get(document.assetInfo.upaxis, "y")
        if options.up in ("y", "z") and options.up != axis:
            raise Malformed(f"declares {axis} as up, but up={options.up} declares {options.up}")
        if axis != "z" and options.up not in ("y", "z"):
            turn = "up=y turns it" if axis == "y" else "turn it in the program that made it"
            placed.note(f"file that has {axis} up, not turned ({turn})", 1)
        scene = _Scene(placed)
        for node in document.scene.nodes:
            scene.draw(node, np.eye(4), "", 0)
        return placed.surface()


def _check_elements(root: Any) -> None:
    for element in root.iter():
        name = element.tag.rsplit("}", 1)[-1] if isinstance(element.tag, str) else ""
        url = element.get("url", "")
        if name in _UNREAD:
            raise Malformed(f"holds <{name}>, which is not supported; {REMEDY}")
        if name in ("instance_geometry", "instance_node") and not url.startswith("#"):
            raise Malformed(f"refers to {url[:120]!r}, part of another file, which is not supported; {REMEDY}")


class _Scene:
    """Geometries of one document, each cut once."""

    def __init__(self, placed: Placed) -> None:
        self._placed = placed
        self._cut: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def draw(self, thing: Any, matrix: np.ndarray, owner: str, depth: int) -> None:
        """Place a node and everything below it. matrix [4, 4] is its parent's, for column vectors."""
        from collada.scene import CameraNode, ExtraNode, GeometryNode, LightNode, Node

        if depth > MAX_DEPTH:
            raise Malformed(f"its nodes are nested more than {MAX_DEPTH} deep, or contain themselves")
        if isinstance(thing, Node):  # instances of nodes too
            inner = matrix @ np.asarray(thing.matrix, np.float64)
            name = (thing.xmlnode.get("name") if thing.xmlnode is not None else None) or thing.id or "node"
            for child in thing.children:
                self.draw(child, inner, name, depth + 1)
        elif isinstance(thing, GeometryNode):
            for primitive in thing.geometry.primitives:
                self._primitive(primitive, matrix, owner)
        elif not isinstance(thing, CameraNode | LightNode | ExtraNode):
            raise Malformed(f"places a {type(thing).__name__}, which is not supported; {REMEDY}")

    def _primitive(self, primitive: Any, matrix: np.ndarray, owner: str) -> None:
        kind = type(primitive).__name__
        if kind == "LineSet":
            self._placed.note("sets of lines", 1)
            return
        if id(primitive) not in self._cut:
            self._cut[id(primitive)] = self._triangles(primitive, kind)
        vertices, faces = self._cut[id(primitive)]
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused when it is sampled
            moved = vertices @ matrix[:3, :3].T + matrix[:3, 3]
        self._placed.add(moved, faces, owner)

    def _triangles(self, primitive: Any, kind: str) -> tuple[np.ndarray, np.ndarray]:
        corners = primitive.vertex_index
        if primitive.vertex is None or corners is None or not len(corners):
            return np.empty((0, 3)), np.empty((0, 3), np.int64)
        vertices = np.asarray(primitive.vertex, np.float64).reshape(-1, 3)
        corners = np.asarray(corners, np.int64).reshape(-1)
        if kind == "TriangleSet":
            return vertices, corners.reshape(-1, 3)
        if kind not in ("Polylist", "Polygons"):
            raise Malformed(f"holds a {kind}, which is not supported; {REMEDY}")
        counts = np.asarray(primitive.vcounts, np.int64).reshape(-1)
        if (counts < 0).any() or counts.sum() != len(corners):
            raise Malformed(f"declares {counts.sum()} polygon corners and lists {len(corners)}")
        starts = np.cumsum(counts) - counts
        groups = [corners[starts[counts == k][:, None] + np.arange(k)] for k in np.unique(counts).tolist()]
        cut = cut_polygons(vertices, groups)
        for reason, count in cut.notes.items():
            self._placed.note(reason, count)
        return vertices, cut.faces
