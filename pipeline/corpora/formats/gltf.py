"""glTF 2.0, GLB and GLTF: the triangles of the default scene, placed, in the pose that the file stores.

The document is walked here and not by a library, because libraries silently leave out what they do not know. Whatever
would change geometry is applied, or refused by its name. Source: the glTF 2.0 specification (Khronos Group).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.corpora.faults import read_file
from pipeline.corpora.formats.allowance import Allowance
from pipeline.corpora.formats.beside import Beside, HeldFiles, InFolder
from pipeline.corpora.formats.geometry import Cloud, Malformed, ReadOptions, Surface
from pipeline.corpora.formats.gltf_buffers import Accessors, Buffers, external_files
from pipeline.corpora.formats.gltf_json import flag, items, listed, named, numbers, object_of, shown, title, whole
from pipeline.corpora.formats.gltf_nodes import INSTANCING, Nodes, instance_matrices

__all__ = ["beside_gltf", "read_gltf", "read_held_gltf"]

POINTS, LINES, TRIANGLES, STRIP, FAN = 0, (1, 2, 3), 4, 5, 6
MAX_TRIANGLES = 30_000_000  # of any file, however large
DRACO = "KHR_draco_mesh_compression"
# What leaves the surface where it is: materials, textures, lights, names, sounds, poses over time.
HARMLESS = (
    "KHR_materials_", "EXT_materials_", "KHR_texture_", "EXT_texture_", "MSFT_texture_", "MSFT_packing_", "KHR_lights_",
    "EXT_lights_", "KHR_xmp", "KHR_animation_", "KHR_techniques_", "KHR_audio", "EXT_mesh_features",
    "EXT_structural_metadata", "EXT_instance_features", "FB_ngon_encoding", "CESIUM_", "AGI_", "ADOBE_materials_",
    "NV_materials_", "KHR_binary_glTF", "MSFT_lod", "GOOGLE_", "KHR_accessor_float16_none",
)  # fmt: skip
APPLIED = {"KHR_mesh_quantization", "EXT_mesh_gpu_instancing", DRACO}
UNPACK = "unpack it (gltfpack does, without -c: gltfpack -i packed.glb -o plain.glb)"
REMEDY = "export the file without it (gltf-transform and Blender can)"


@dataclass
class _Pile:
    """The geometry found so far; faces index the vertices of everything before."""

    vertices: list[np.ndarray] = field(default_factory=list)
    faces: list[np.ndarray] = field(default_factory=list)
    owners: list[tuple[str, int]] = field(default_factory=list)
    points: list[np.ndarray] = field(default_factory=list)
    notes: dict[str, int] = field(default_factory=dict)
    count: int = 0
    triangles: int = 0

    def note(self, reason: str, count: int) -> None:
        if count:
            self.notes[reason] = self.notes.get(reason, 0) + count


def read_gltf(data: bytes, path: Path, options: ReadOptions) -> Surface | Cloud:
    """Read all meshes of the default scene as triangles; points alone as a cloud.

    A file without scenes is read from all its root nodes. Nodes, instances, skins and morph weights are applied as the
    file stores them. Lines are counted, not read.
    """
    return _read(data, path, InFolder(path.parent), options)


def read_held_gltf(data: bytes, path: Path, files: Mapping[str, bytes], options: ReadOptions) -> Surface | Cloud:
    """Read a glTF as `read_gltf` does, from memory, the files that it names among ``files``."""
    return _read(data, path, HeldFiles(files), options)


def _read(data: bytes, path: Path, beside: Beside, options: ReadOptions) -> Surface | Cloud:
    if options.parts not in ("", "node", "material"):
        raise Malformed(f"parts={options.parts} was requested; a glTF file has parts by node and by material")
    document, blob = _document(data, path)
    _check_extensions(document)
    external_files(document, beside)  # a buffer that is not beside the file is refused, used or not
    scene = _Scene(document, blob, beside, len(data), options.parts)
    for index in scene.nodes.drawn():
        if "mesh" in scene.nodes[index]:
            scene.draw(index)
    pile = scene.pile
    if not pile.faces:
        if pile.points:
            return Cloud(np.concatenate(pile.points), notes=pile.notes)
        only = ", ".join(f"{count} {reason}" for reason, count in pile.notes.items())
        raise Malformed(f"its scene holds neither triangles nor points{f' ({only})' if only else ''}")
    pile.note("points beside the triangles, not sampled", sum(len(points) for points in pile.points))
    names = list(dict.fromkeys(name for name, _ in pile.owners))
    number = {name: k for k, name in enumerate(names)}
    return Surface(
        np.concatenate(pile.vertices),
        np.concatenate(pile.faces),
        parts=np.concatenate([np.full(count, number[name]) for name, count in pile.owners]) if options.parts else None,
        part_names=tuple(names) if options.parts else (),
        notes=pile.notes,
    )


def beside_gltf(path: Path) -> Sequence[Path]:
    """List the buffer files that a glTF names. A GLB is only read up to its first chunk, which names them."""
    head = read_file(path, first=20)
    if head[:4] == b"glTF" and len(head) == 20:
        length = int.from_bytes(head[12:16], "little")
        text = read_file(path, first=20 + length)[20:]
        if head[16:] != b"JSON" or len(text) != length:
            raise Malformed("its first chunk is not JSON, or is truncated")
        document = _parsed(text.rstrip(b"\0 "))
    else:
        document = _document(head if path.suffix.lower() == ".glb" else read_file(path), path)[0]
    return [path.parent / name for name in external_files(document, InFolder(path.parent))]


# -- the document ------------------------------------------------------------------------------------------------------


def _document(data: bytes, path: Path) -> tuple[dict[str, Any], bytes | None]:
    """Parse the JSON object, and the binary chunk of a GLB."""
    blob = None
    text = data
    if data[:4] == b"glTF":
        text, blob = _chunks(data)
    elif path.suffix.lower() == ".glb":
        raise Malformed("does not start with glTF")
    return _parsed(text), blob


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        document = json.loads(text.decode("utf-8-sig"), parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"its JSON does not parse: {error}"[:200]) from error
    if not isinstance(document, dict):
        raise Malformed("is JSON, but not a glTF object")
    asset = object_of(document, "asset", "the document")
    for version in (asset.get("version"), asset.get("minVersion", "2.0")):
        if not isinstance(version, str) or not version.startswith("2."):
            raise Malformed(f"is glTF {shown(version)}; version 2 is read. Convert it (gltf-pipeline does)")
    return document


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _chunks(data: bytes) -> tuple[bytes, bytes | None]:
    if len(data) < 20:
        raise Malformed(f"is a GLB of {len(data)} bytes; it is truncated")
    version, size = (int.from_bytes(data[at : at + 4], "little") for at in (4, 8))
    if version != 2:
        raise Malformed(f"is a GLB of version {version}; version 2 is read. Convert it (gltf-pipeline does)")
    if size != len(data):
        raise Malformed(f"the header declares {size} bytes, the file has {len(data)}")
    found: list[tuple[bytes, bytes]] = []
    at = 12
    while at + 8 <= size:
        length, kind = int.from_bytes(data[at : at + 4], "little"), data[at + 4 : at + 8]
        if at + 8 + length > size:
            raise Malformed(f"a chunk declares {length} bytes, {size - at - 8} are left")
        found.append((kind, data[at + 8 : at + 8 + length]))
        at += 8 + length
    if not found or found[0][0] != b"JSON":
        raise Malformed("its first chunk is not JSON")
    blob = next((chunk for kind, chunk in found[1:] if kind == b"BIN\0"), None)
    return found[0][1].rstrip(b"\0 "), blob


def _check_extensions(document: dict[str, Any]) -> None:
    """Refuse, by name, extensions that affect geometry and are not supported."""
    for name in listed(document, "extensionsRequired", "the document"):
        if isinstance(name, str) and "meshopt" in name:
            raise Malformed(f"is compressed by the extension {name[:60]}, which is not supported; {UNPACK}")
        if not isinstance(name, str) or (name not in APPLIED and not name.startswith(HARMLESS)):
            raise Malformed(f"requires the extension {str(name)[:60]}, which is not supported; {REMEDY}")
    for index, node in enumerate(items(document, "nodes")):
        extensions = object_of(node, "extensions", f"node {index}")
        hidden = object_of(extensions, "KHR_node_visibility", f"node {index}")
        if not flag(hidden, "visible", f"node {index}", True):
            raise Malformed(f"hides a node by the extension KHR_node_visibility, which is not supported; {REMEDY}")
    buffers = items(document, "buffers")
    for index, view in enumerate(items(document, "bufferViews")):
        for name in object_of(view, "extensions", f"buffer view {index}"):
            # A file that does not require it holds the same view unpacked, in the buffer that the view itself names.
            if "meshopt" in name and not _has_bytes(view.get("buffer"), buffers):
                raise Malformed(f"is compressed by the extension {name[:60]}, which is not supported; {UNPACK}")


def _has_bytes(number: Any, buffers: list[dict[str, Any]]) -> bool:
    """Check whether a buffer behind a packed view has data of its own. One without a uri never lies in the GLB."""
    return "uri" in buffers[named(number, buffers, "buffer", "a buffer view")]


# -- meshes ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Primitive:
    """A primitive as it is stored, whoever draws it: only the vertices that it uses.

    owner       what it is called in reasons.
    positions   [R, 3] float64, before morph targets.
    rows        [R] int64, which of the mesh's vertices they are.
    count       all vertices that the mesh has for it.
    faces       [F, 3] int64 into positions, none degenerate; None: it is points.
    degenerate  faces that were.
    """

    owner: str
    positions: np.ndarray
    rows: np.ndarray
    count: int
    faces: np.ndarray | None
    degenerate: int = 0


class _Scene:
    """The geometry that the nodes of one document draw."""

    def __init__(self, document: dict[str, Any], blob: bytes | None, beside: Beside, size: int, parts: str) -> None:
        self.allowance = Allowance(size)
        self.accessors = Accessors(document, Buffers(document, blob, beside, self.allowance), self.allowance)
        self.nodes = Nodes(document, self.accessors)
        self.pile = _Pile()
        self._parts = parts
        self._meshes, self._materials = items(document, "meshes"), items(document, "materials")
        self._read: dict[int, list[tuple[dict[str, Any], _Primitive | None, dict[str, int]]]] = {}

    def draw(self, index: int) -> None:
        """Add the mesh of a node to the pile, wherever it is drawn."""
        node = self.nodes[index]
        number = named(node["mesh"], self._meshes, "mesh", f"node {index}")
        mesh = self._meshes[number]
        weights, owner = (node, f"node {index}") if "weights" in node else (mesh, f"mesh {number}")
        instances = instance_matrices(node, index, self.accessors, self.allowance)
        if instances is not None and "skin" in node:
            raise Malformed(f"node {index} has both a skin and {INSTANCING}, which is not supported; {REMEDY}")
        world = self.nodes.world(index)
        with np.errstate(over="ignore", invalid="ignore"):
            matrices = world[None] if instances is None else world @ instances
        for stored, primitive, notes in self._primitives(number):
            for reason, count in notes.items():
                self.pile.note(reason, count)
            part = self._part(index, stored)
            if primitive is None:
                continue
            drawn = len(matrices) * len(primitive.rows)
            self.allowance.spend("points" if primitive.faces is None else "vertices", drawn)
            if primitive.faces is not None:
                self._count_triangles(len(matrices) * len(primitive.faces))
            positions = self._morphed(stored, primitive, weights, owner)
            skinned = self.nodes.skin(index, stored["attributes"], positions, primitive.rows, primitive.count)
            self._add(part, primitive, _placed(matrices, positions) if skinned is None else skinned, len(matrices))

    def _add(self, part: str, primitive: _Primitive, placed: np.ndarray, copies: int) -> None:
        pile = self.pile
        if primitive.faces is None:
            pile.points.append(placed)
            return
        starts = pile.count + len(primitive.rows) * np.arange(copies)
        pile.vertices.append(placed)
        pile.faces.append((primitive.faces + starts[:, None, None]).reshape(-1, 3))
        pile.owners.append((part, copies * len(primitive.faces)))
        pile.count += len(placed)
        pile.note("degenerate faces", copies * primitive.degenerate)

    def _count_triangles(self, count: int) -> None:
        self.allowance.spend("triangles", count)
        self.pile.triangles += count
        if self.pile.triangles > MAX_TRIANGLES:
            raise Malformed(f"its nodes and instances make more than {MAX_TRIANGLES} triangles")

    def _primitives(self, number: int) -> list[tuple[dict[str, Any], _Primitive | None, dict[str, int]]]:
        """The primitives of a mesh, read once: as the document has them, what they are, and what is noted of them."""
        if number not in self._read:
            found = []
            for place, stored in enumerate(items(self._meshes[number], "primitives")):
                notes: dict[str, int] = {}
                what = f"primitive {place} of mesh {number}"
                found.append((stored, _primitive(self.accessors, stored, what, notes, self.allowance), notes))
            self._read[number] = found
        return self._read[number]

    def _part(self, index: int, primitive: dict[str, Any]) -> str:
        """Return the name of the part that a primitive's faces belong to."""
        if self._parts == "node":
            return title(self.nodes[index], f"node {index}")
        if self._parts != "material" or "material" not in primitive:
            return "no material"
        number = named(primitive["material"], self._materials, "material", "a primitive")
        return title(self._materials[number], f"material {number}")

    def _morphed(
        self, stored: dict[str, Any], primitive: _Primitive, weights: dict[str, Any], owner: str
    ) -> np.ndarray:
        """Positions [R, 3] with the morph targets of a primitive at the weights that a node or a mesh has."""
        targets, positions = items(stored, "targets"), primitive.positions
        if not targets or "weights" not in weights:
            return positions
        for weight, target in zip(numbers(weights, "weights", owner, len(targets)), targets, strict=True):
            if not weight or "POSITION" not in target:
                continue
            moves = self.accessors.count(target["POSITION"], primitive.owner)
            if moves != primitive.count:
                raise Malformed(f"a morph target has {moves} vertices; the primitive has {primitive.count}")
            self.allowance.spend("moved vertices", len(positions))
            moved = self.accessors.floats(target["POSITION"], "VEC3", primitive.owner, primitive.rows)
            with np.errstate(over="ignore", invalid="ignore"):
                positions = positions + weight * moved
        return positions


def _primitive(
    accessors: Accessors, primitive: dict[str, Any], what: str, notes: dict[str, int], allowance: Allowance
) -> _Primitive | None:
    """Read a primitive; None if there is nothing to read, which is noted."""
    mode = whole(primitive, "mode", what, TRIANGLES)
    if mode not in (POINTS, *LINES, TRIANGLES, STRIP, FAN):
        raise Malformed(f"{what} has mode {mode}")
    if "attributes" not in primitive:
        raise Malformed(f"{what} has no attributes")
    attributes = object_of(primitive, "attributes", what)
    extensions = object_of(primitive, "extensions", what)
    for name in extensions:
        if name.startswith("KHR_gaussian_splatting"):
            raise Malformed(f"contains Gaussian splats by the extension {name[:60]}, which have no surface; {REMEDY}")
    if mode in LINES:
        notes["primitives of lines"] = 1
        return None
    if DRACO in extensions:
        if items(primitive, "targets") or "JOINTS_0" in attributes:
            raise Malformed(f"a skinned or morphing mesh is compressed by {DRACO}, which is not supported; {REMEDY}")
        if mode not in (TRIANGLES, STRIP):  # a strip is what a decoder may make of the triangles that are stored
            raise Malformed(f"{what} has mode {mode} and {DRACO}, which is for triangles only")
        positions, faces = accessors.draco(object_of(extensions, DRACO, what), what)
        _check_indices(faces, len(positions), what)
        return _used(what, faces, len(positions), lambda rows: positions[rows])
    if "POSITION" not in attributes:
        notes["primitives without positions"] = 1
        return None
    count = accessors.count(attributes["POSITION"], what)

    def read(rows: np.ndarray) -> np.ndarray:
        allowance.spend("stored vertices", len(rows))
        return accessors.floats(attributes["POSITION"], "VEC3", what, rows)

    if "indices" in primitive:
        index = accessors.indices(primitive["indices"], what)
    else:
        allowance.spend("indices", count)
        index = np.arange(count, dtype=np.int64)
    _check_indices(index, count, what)
    if mode == POINTS:
        rows = np.unique(index)
        return _Primitive(what, read(rows), rows, count, None)
    return _used(what, _triangles(index, mode, notes), count, read)


def _check_indices(index: np.ndarray, count: int, what: str) -> None:
    if index.size and index.max() >= count:
        raise Malformed(f"{what} refers to vertex {int(index.max())}; there are {count} vertices")


def _used(what: str, faces: np.ndarray, count: int, read: Callable[[np.ndarray], np.ndarray]) -> _Primitive:
    """Faces [F, 3] that are not degenerate, and the vertices that they use alone; ``read`` gives those of some rows."""
    kept = (faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 0] != faces[:, 2])
    degenerate = len(kept) - int(np.count_nonzero(kept))
    faces = faces[kept] if degenerate else faces
    if 8 * faces.size < count:  # a few of many
        rows = np.unique(faces)
        faces = np.searchsorted(rows, faces)
    else:
        used = np.zeros(count, bool)
        used[faces] = True
        rows = np.flatnonzero(used)
        if len(rows) < count:
            faces = (np.cumsum(used) - 1)[faces]
    return _Primitive(what, read(rows), rows, count, faces, degenerate)


def _triangles(index: np.ndarray, mode: int, notes: dict[str, int]) -> np.ndarray:
    if mode == TRIANGLES:
        if len(index) % 3:
            notes["corners left over of triangles"] = len(index) % 3
        return index[: len(index) // 3 * 3].reshape(-1, 3)
    if len(index) < 3:
        return np.empty((0, 3), np.int64)
    if mode == STRIP:  # which way round a triangle goes does not matter to its area
        return np.stack([index[:-2], index[1:-1], index[2:]], axis=1)
    return np.stack([np.broadcast_to(index[0], len(index) - 2), index[1:-1], index[2:]], axis=1)


def _placed(matrices: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Positions [R, 3] by each of n matrices [n, 4, 4]: [n R, 3].

    Spelled out, because the last bits of a product of matrices depend on how many rows it has.
    """
    x, y, z = positions.T
    placed = np.empty((len(matrices), len(positions), 3))
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused when it is sampled
        for axis in range(3):
            row = matrices[:, axis, :, None]  # [n, 4, 1]
            placed[:, :, axis] = row[:, 0] * x + row[:, 1] * y + row[:, 2] * z + row[:, 3]
    return placed.reshape(-1, 3)
