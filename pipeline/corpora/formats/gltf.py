"""glTF 2.0, GLB and GLTF: the triangles of the default scene, placed, in the pose that the file stores.

The document is walked here and not by a library, because libraries leave out what they do not know without a word.
Whatever would change geometry is applied, or refused by its name. Source: the glTF 2.0 specification (Khronos Group).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.corpora.faults import read_file
from pipeline.corpora.formats.geometry import Cloud, Malformed, ReadOptions, Surface
from pipeline.corpora.formats.gltf_buffers import Accessors, Buffers, external_files, items
from pipeline.corpora.formats.gltf_nodes import Nodes, instance_matrices

__all__ = ["beside_gltf", "read_gltf"]

POINTS, LINES, TRIANGLES, STRIP, FAN = 0, (1, 2, 3), 4, 5, 6
MAX_TRIANGLES = 30_000_000  # after instancing, which can make any number of a few bytes
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
    """What has been found so far; faces index the vertices of all that came before."""

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
    """All meshes of the default scene, as triangles; points alone as a cloud.

    A file without scenes is read from all its root nodes. Nodes, instances, skins and morph weights are applied as the
    file stores them. Lines are counted, not read.
    """
    if options.parts not in ("", "node", "material"):
        raise Malformed(f"parts={options.parts} is asked for; a glTF file has parts by node and by material")
    document, blob = _document(data, path)
    _check_extensions(document)
    external_files(document, path)  # a buffer that is not beside the file is refused, used or not
    buffers = Buffers(document, blob, path)
    accessors = Accessors(document, buffers, len(data))
    nodes = Nodes(document, accessors)
    pile = _Pile()
    for index in nodes.drawn():
        node = nodes[index]
        if "mesh" in node:
            _add_mesh(document, accessors, nodes, index, options.parts, pile)
    if not pile.faces:
        if pile.points:
            return Cloud(np.concatenate(pile.points), notes=pile.notes)
        only = ", ".join(f"{count} {reason}" for reason, count in pile.notes.items())
        raise Malformed(f"its scene holds neither triangles nor points{f' ({only})' if only else ''}")
    pile.note("points beside the triangles, not sampled", sum(len(points) for points in pile.points))
    faces = np.concatenate(pile.faces)
    kept = (faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 0] != faces[:, 2])
    pile.note("degenerate faces", int((~kept).sum()))
    names = list(dict.fromkeys(name for name, _ in pile.owners))
    number = {name: k for k, name in enumerate(names)}
    parts = (
        np.concatenate([np.full(count, number[name]) for name, count in pile.owners])[kept] if options.parts else None
    )
    return Surface(
        np.concatenate(pile.vertices),
        faces[kept],
        parts=parts,
        part_names=tuple(names) if options.parts else (),
        notes=pile.notes,
    )


def beside_gltf(path: Path) -> Sequence[Path]:
    """The buffer files that a glTF names. Of a GLB its first chunk alone is read, which says so."""
    head = read_file(path, first=20)
    if head[:4] == b"glTF" and len(head) == 20:
        length = int.from_bytes(head[12:16], "little")
        text = read_file(path, first=20 + length)[20:]
        if head[16:] != b"JSON" or len(text) != length:
            raise Malformed("its first chunk is not JSON, or is cut short")
        return external_files(_parsed(text.rstrip(b"\0 ")), path)
    return external_files(_document(head if path.suffix.lower() == ".glb" else read_file(path), path)[0], path)


# -- the document ------------------------------------------------------------------------------------------------------


def _document(data: bytes, path: Path) -> tuple[dict[str, Any], bytes | None]:
    """The JSON object, and the binary chunk of a GLB."""
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
        raise Malformed(f"cannot be parsed as JSON: {error}"[:200]) from error
    if not isinstance(document, dict):
        raise Malformed("is JSON, and no glTF object")
    asset = document.get("asset")
    version = asset.get("version") if isinstance(asset, dict) else None
    if not isinstance(version, str) or not version.startswith("2."):
        raise Malformed(f"is glTF {str(version)[:20]!r}; version 2 is read. Convert it (gltf-pipeline does)")
    return document


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _chunks(data: bytes) -> tuple[bytes, bytes | None]:
    if len(data) < 20:
        raise Malformed(f"is a GLB of {len(data)} bytes; it is truncated")
    version, size = (int.from_bytes(data[at : at + 4], "little") for at in (4, 8))
    if version != 2:
        raise Malformed(f"is a GLB of version {version}; version 2 is read. Convert it (gltf-pipeline does)")
    if size != len(data):
        raise Malformed(f"the header promises {size} bytes, the file has {len(data)}")
    found: list[tuple[bytes, bytes]] = []
    at = 12
    while at + 8 <= size:
        length, kind = int.from_bytes(data[at : at + 4], "little"), data[at + 4 : at + 8]
        if at + 8 + length > size:
            raise Malformed(f"a chunk promises {length} bytes, {size - at - 8} are left")
        found.append((kind, data[at + 8 : at + 8 + length]))
        at += 8 + length
    if not found or found[0][0] != b"JSON":
        raise Malformed("its first chunk is not JSON")
    blob = next((chunk for kind, chunk in found[1:] if kind == b"BIN\0"), None)
    return found[0][1].rstrip(b"\0 "), blob


def _check_extensions(document: dict[str, Any]) -> None:
    """Refuse by name what a reader has to know and this one does not."""
    for name in document.get("extensionsRequired") or []:
        if isinstance(name, str) and "meshopt" in name:
            raise Malformed(f"is compressed by the extension {name[:60]}, which is not read here; {UNPACK}")
        if not isinstance(name, str) or (name not in APPLIED and not name.startswith(HARMLESS)):
            raise Malformed(f"requires the extension {str(name)[:60]}, which is not read here; {REMEDY}")
    for node in items(document, "nodes"):
        hidden = (node.get("extensions") or {}).get("KHR_node_visibility")
        if isinstance(hidden, dict) and hidden.get("visible") is False:
            raise Malformed(f"hides a node by the extension KHR_node_visibility, which is not read here; {REMEDY}")
    buffers = items(document, "buffers")
    for view in items(document, "bufferViews"):
        for name in view.get("extensions") or {}:
            # A file that does not require it holds the same view unpacked, in the buffer that the view itself names.
            if "meshopt" in name and not _has_bytes(view.get("buffer"), buffers):
                raise Malformed(f"is compressed by the extension {str(name)[:60]}, which is not read here; {UNPACK}")


def _has_bytes(number: Any, buffers: list[dict[str, Any]]) -> bool:
    """Whether a buffer of a view that is also packed holds anything itself. One without a uri never lies in the GLB."""
    return type(number) is int and 0 <= number < len(buffers) and "uri" in buffers[number]


# -- meshes ------------------------------------------------------------------------------------------------------------


def _add_mesh(
    document: dict[str, Any], accessors: Accessors, nodes: Nodes, index: int, parts: str, pile: _Pile
) -> None:
    node = nodes[index]
    meshes = items(document, "meshes")
    number = node["mesh"]
    if type(number) is not int or not 0 <= number < len(meshes):
        raise Malformed(f"node {index} names mesh {number!r}; there are {len(meshes)}")
    mesh = meshes[number]
    weights = node.get("weights", mesh.get("weights"))
    matrices = instance_matrices(node, nodes.world(index), accessors)
    for primitive in items(mesh, "primitives"):
        owner = _owner(document, nodes, index, primitive, parts)
        positions, faces, mode = _primitive(document, accessors, primitive, weights, pile)
        if positions is None:
            continue
        skinned = nodes.skin(index, primitive, positions)
        placed = [skinned] if skinned is not None else [_apply(matrix, positions) for matrix in matrices]
        if mode == POINTS:
            pile.points += [copy[np.unique(faces)] for copy in placed]
            continue
        pile.triangles += len(faces) * len(placed)
        if pile.triangles > MAX_TRIANGLES:
            raise Malformed(f"its nodes and instances make more than {MAX_TRIANGLES} triangles")
        for copy in placed:
            pile.vertices.append(copy)
            pile.faces.append(faces + pile.count)
            pile.owners.append((owner, len(faces)))
            pile.count += len(copy)


def _owner(document: dict[str, Any], nodes: Nodes, index: int, primitive: dict[str, Any], parts: str) -> str:
    """The name of the part that a primitive's faces are."""
    if parts == "material":
        number = primitive.get("material")
        if type(number) is not int:
            return "no material"
        materials = items(document, "materials")
        if not 0 <= number < len(materials):
            raise Malformed(f"a primitive names material {number}; there are {len(materials)}")
        return str(materials[number].get("name") or f"material {number}")
    return str(nodes[index].get("name") or f"node {index}")


def _primitive(
    document: dict[str, Any], accessors: Accessors, primitive: dict[str, Any], weights: Any, pile: _Pile
) -> tuple[np.ndarray | None, np.ndarray, int]:
    """Positions [M, 3] float64 with morph targets applied, faces [F, 3] (or points [P]) into them, and TRIANGLES or
    POINTS; None where there is nothing to read, which is noted.
    """
    nothing = None, np.empty((0, 3), np.int64), TRIANGLES
    mode = primitive.get("mode", TRIANGLES)
    if mode not in (POINTS, *LINES, TRIANGLES, STRIP, FAN):
        raise Malformed(f"a primitive has mode {mode!r}")
    attributes = primitive.get("attributes")
    if not isinstance(attributes, dict):
        raise Malformed("a primitive has no attributes")
    extensions = primitive.get("extensions") or {}
    for name in extensions:
        if name.startswith("KHR_gaussian_splatting"):
            raise Malformed(f"holds splats by the extension {name[:60]}, which are no surface; {REMEDY}")
    if mode in LINES:
        pile.note("primitives of lines", 1)
        return nothing
    if DRACO in extensions:
        if primitive.get("targets") or "JOINTS_0" in attributes:
            raise Malformed(f"a skinned or morphing mesh is compressed by {DRACO}, which is not read here; {REMEDY}")
        positions, index = accessors.draco(extensions[DRACO])
    elif "POSITION" not in attributes:
        pile.note("primitives without positions", 1)
        return nothing
    else:
        positions = accessors.floats(attributes["POSITION"], "VEC3")
        index = None
        if "indices" in primitive:
            index = accessors.indices(primitive["indices"])
        positions = _morphed(accessors, positions, primitive.get("targets") or [], weights)
    if index is None:
        index = np.arange(len(positions), dtype=np.int64)
    if len(index) and index.max() >= len(positions):
        raise Malformed(f"a primitive names vertex {int(index.max())}; there are {len(positions)}")
    if mode == POINTS:
        return positions, index, POINTS
    return positions, _triangles(index, mode, pile), TRIANGLES


def _triangles(index: np.ndarray, mode: int, pile: _Pile) -> np.ndarray:
    if mode == TRIANGLES:
        pile.note("corners left over of triangles", len(index) % 3)
        return index[: len(index) // 3 * 3].reshape(-1, 3)
    if len(index) < 3:
        return np.empty((0, 3), np.int64)
    if mode == STRIP:  # which way round a triangle goes does not matter to its area
        return np.stack([index[:-2], index[1:-1], index[2:]], axis=1)
    return np.stack([np.broadcast_to(index[0], len(index) - 2), index[1:-1], index[2:]], axis=1)


def _morphed(accessors: Accessors, positions: np.ndarray, targets: Any, weights: Any) -> np.ndarray:
    if not targets or weights is None:
        return positions
    if not isinstance(targets, list) or not isinstance(weights, list) or len(weights) != len(targets):
        raise Malformed(f"has {len(targets)} morph targets and other weights: {str(weights)[:40]}")
    for weight, target in zip(weights, targets, strict=True):
        if not isinstance(weight, int | float) or not isinstance(target, dict):
            raise Malformed(f"a morph weight is {str(weight)[:40]!r}")
        if weight and "POSITION" in target:
            moved = accessors.floats(target["POSITION"], "VEC3")
            if len(moved) != len(positions):
                raise Malformed(f"a morph target moves {len(moved)} vertices; there are {len(positions)}")
            positions = positions + weight * moved
    return positions


def _apply(matrix: np.ndarray, positions: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused when it is sampled
        return positions @ matrix[:3, :3].T + matrix[:3, 3]
