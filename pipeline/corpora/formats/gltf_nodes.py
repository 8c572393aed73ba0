"""The node tree of a glTF file: drawn nodes, their matrices, and skinning."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from pipeline.corpora.formats.allowance import Allowance
from pipeline.corpora.formats.geometry import Malformed
from pipeline.corpora.formats.gltf_buffers import Accessors
from pipeline.corpora.formats.gltf_json import items, listed, named, numbers, object_of

__all__ = ["INSTANCING", "Nodes", "instance_matrices"]

INSTANCING = "EXT_mesh_gpu_instancing"
MAX_DEPTH = 1000  # nodes within nodes
MAX_SETS = 8  # of four joints a vertex
_PLACES = {"TRANSLATION": "VEC3", "ROTATION": "VEC4", "SCALE": "VEC3"}


class Nodes:
    """Nodes by number. Raises Malformed for an invalid tree: cycles, two parents, numbers out of range."""

    def __init__(self, document: dict[str, Any], accessors: Accessors) -> None:
        self._document, self._accessors = document, accessors
        self._nodes, self._skins = items(document, "nodes"), items(document, "skins")
        self._parents = self._family()
        self._worlds: dict[int, np.ndarray] = {}
        self._joints: dict[int, np.ndarray] = {}

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._nodes[index]

    def drawn(self) -> Iterator[int]:
        """Yield the nodes of the default scene, parents first; in a file without scenes, of all trees."""
        scenes = items(self._document, "scenes")
        if not scenes:
            roots = [index for index, parent in enumerate(self._parents) if parent is None]
        else:
            number = named(self._document.get("scene", 0), scenes, "scene", "the document")
            roots = self._numbers(scenes[number], "nodes", f"scene {number}")
        stack = list(reversed(roots))
        seen: set[int] = set()
        while stack:
            index = stack.pop()
            if index in seen:
                raise Malformed(f"node {index} occurs twice in its scene")
            seen.add(index)
            yield index
            stack += reversed(self._children(index))

    def world(self, index: int) -> np.ndarray:
        """Return the matrix [4, 4] float64 from a node to the scene."""
        chain = [index]
        while chain[-1] not in self._worlds and self._parents[chain[-1]] is not None:
            chain.append(self._parents[chain[-1]])  # type: ignore[arg-type]
            if len(chain) > MAX_DEPTH:
                raise Malformed(f"its nodes are nested more than {MAX_DEPTH} deep, or in a cycle")
        for node in reversed(chain):
            if node not in self._worlds:
                parent = self._parents[node]
                own = _local(self._nodes[node], node)
                with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused when it is sampled
                    self._worlds[node] = own if parent is None else self._worlds[parent] @ own
        return self._worlds[index]

    def skin(
        self, index: int, attributes: dict[str, Any], positions: np.ndarray, rows: np.ndarray, count: int
    ) -> np.ndarray | None:
        """Positions [R, 3] of a skinned primitive in the scene, by its joints alone; None for one without a skin.

        rows   of the attributes that the positions are [R].
        count  of all vertices of the primitive.

        The node's own matrix does not count (specification, section 3.7.3.3).
        """
        node = self._nodes[index]
        if "skin" not in node:
            return None
        number = named(node["skin"], self._skins, "skin", f"node {index}")
        if "JOINTS_0" not in attributes:
            return None
        matrices, what = self._skin_matrices(number), f"the mesh of node {index}"
        moved, total = np.zeros((len(positions), 3)), np.zeros(len(positions))
        for k in range(MAX_SETS):
            if f"JOINTS_{k}" not in attributes:
                break
            for key in (f"JOINTS_{k}", f"WEIGHTS_{k}"):
                held = self._accessors.count(attributes.get(key), what)
                if held != count:
                    raise Malformed(f"{what} has {count} vertices and {key} of {held}")
            joints = self._accessors.joints(attributes[f"JOINTS_{k}"], what, rows)
            shares = self._accessors.floats(attributes[f"WEIGHTS_{k}"], "VEC4", what, rows)
            for column in range(4):
                share = shares[:, column]
                used = share != 0
                if used.any() and joints[used, column].max() >= len(matrices):
                    raise Malformed(
                        f"a vertex refers to joint {int(joints[used, column].max())}; there are {len(matrices)}"
                    )
                place = matrices[np.where(used, joints[:, column], 0)]  # [R, 4, 4]
                with np.errstate(over="ignore", invalid="ignore"):
                    moved += share[:, None] * (np.einsum("nij,nj->ni", place[:, :3, :3], positions) + place[:, :3, 3])
                total += share
        if (total <= 0).any():
            raise Malformed(f"{int((total <= 0).sum())} vertices of a skinned mesh have no weights")
        return moved / total[:, None]

    def _skin_matrices(self, number: int) -> np.ndarray:
        """From the mesh as it was bound to the scene, for each joint [J, 4, 4]."""
        if number not in self._joints:
            skin, what = self._skins[number], f"skin {number}"
            joints = self._numbers(skin, "joints", what)
            if not joints:
                raise Malformed(f"{what} has no joints")
            matrices = np.stack([self.world(joint) for joint in joints])
            if "inverseBindMatrices" in skin:
                count = self._accessors.count(skin["inverseBindMatrices"], what)
                if count < len(joints):
                    raise Malformed(f"{what} has {len(joints)} joints and {count} inverse bind matrices")
                bind = self._accessors.floats(skin["inverseBindMatrices"], "MAT4", what, np.arange(len(joints)))
                with np.errstate(over="ignore", invalid="ignore"):
                    matrices = matrices @ bind.reshape(-1, 4, 4).transpose(0, 2, 1)
            self._joints[number] = matrices
        return self._joints[number]

    def _family(self) -> list[int | None]:
        parents: list[int | None] = [None] * len(self._nodes)
        for index in range(len(self._nodes)):
            for child in self._children(index):
                if parents[child] is not None or child == index:
                    raise Malformed(f"node {child} has two parents")
                parents[child] = index
        return parents

    def _children(self, index: int) -> list[int]:
        return self._numbers(self._nodes[index], "children", f"node {index}")

    def _numbers(self, owner: dict[str, Any], key: str, what: str) -> list[int]:
        return [named(one, self._nodes, "node", what) for one in listed(owner, key, what)]


def instance_matrices(
    node: dict[str, Any], index: int, accessors: Accessors, allowance: Allowance
) -> np.ndarray | None:
    """Return where a node's mesh is drawn within it [count, 4, 4], by EXT_mesh_gpu_instancing; None without that."""
    what = f"node {index}"
    extensions = object_of(node, "extensions", what)
    if INSTANCING not in extensions:
        return None
    what = f"the {INSTANCING} of {what}"
    attributes = object_of(object_of(extensions, INSTANCING, f"node {index}"), "attributes", what)
    kinds = {name: kind for name, kind in _PLACES.items() if name in attributes}
    counts = {accessors.count(attributes[name], what) for name in kinds}
    if len(counts) != 1:
        raise Malformed(f"{what} has attributes of {sorted(counts)} instances")
    count = counts.pop()
    allowance.spend("instances", count)
    found = {name: accessors.floats(attributes[name], kind, what) for name, kind in kinds.items()}
    return _composed(
        found.get("TRANSLATION", np.zeros((count, 3))),
        found.get("ROTATION", np.tile([0.0, 0.0, 0.0, 1.0], (count, 1))),
        found.get("SCALE", np.ones((count, 3))),
    )


def _local(node: dict[str, Any], index: int) -> np.ndarray:
    what = f"node {index}"
    if "matrix" in node:
        return np.array(numbers(node, "matrix", what, 16)).reshape(4, 4).T

    def row(key: str, default: list[float]) -> np.ndarray:
        return np.array([numbers(node, key, what, len(default)) if key in node else default], np.float64)

    return _composed(row("translation", [0, 0, 0]), row("rotation", [0, 0, 0, 1]), row("scale", [1, 1, 1]))[0]


def _composed(moved: np.ndarray, turned: np.ndarray, scaled: np.ndarray) -> np.ndarray:
    """Translations [n, 3] times rotations (unit quaternions x, y, z, w) [n, 4] times scales [n, 3]: [n, 4, 4]."""
    x, y, z, w = turned.T
    matrices = np.tile(np.eye(4), (len(moved), 1, 1))
    with np.errstate(over="ignore", invalid="ignore"):
        rotation = np.array(
            [
                [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
                [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
                [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
            ]
        )  # [3, 3, n]
        matrices[:, :3, :3] = rotation.transpose(2, 0, 1) * scaled[:, None, :]
    matrices[:, :3, 3] = moved
    return matrices
