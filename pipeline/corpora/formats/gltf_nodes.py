"""The tree of a glTF file: which nodes are drawn, where they are, and what skins do to their meshes."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from pipeline.corpora.formats.geometry import Malformed
from pipeline.corpora.formats.gltf_buffers import Accessors, items

__all__ = ["Nodes", "instance_matrices"]

INSTANCING = "EXT_mesh_gpu_instancing"
MAX_DEPTH = 1000  # nodes within nodes


class Nodes:
    """Nodes by number. Raises Malformed for a tree that is none: circles, two parents, numbers out of range."""

    def __init__(self, document: dict[str, Any], accessors: Accessors) -> None:
        self._document, self._accessors = document, accessors
        self._nodes = items(document, "nodes")
        self._parents = self._family()
        self._worlds: dict[int, np.ndarray] = {}

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._nodes[index]

    def drawn(self) -> Iterator[int]:
        """Nodes of the default scene, parents first; in a file without scenes, of all trees."""
        scenes = items(self._document, "scenes")
        if not scenes:
            roots = [index for index, parent in enumerate(self._parents) if parent is None]
        else:
            number = self._document.get("scene", 0)
            if type(number) is not int or not 0 <= number < len(scenes):
                raise Malformed(f"its scene is {str(number)[:20]!r}; there are {len(scenes)}")
            roots = self._numbers(scenes[number].get("nodes", []), "a scene")
        stack = list(reversed(roots))
        seen: set[int] = set()
        while stack:
            index = stack.pop()
            if index in seen:
                raise Malformed(f"node {index} is drawn twice in its scene")
            seen.add(index)
            yield index
            stack += reversed(self._children(index))

    def world(self, index: int) -> np.ndarray:
        """The matrix [4, 4] float64 from a node to the scene."""
        chain = [index]
        while chain[-1] not in self._worlds and self._parents[chain[-1]] is not None:
            chain.append(self._parents[chain[-1]])  # type: ignore[arg-type]
            if len(chain) > MAX_DEPTH:
                raise Malformed(f"its nodes lie more than {MAX_DEPTH} deep, or in a circle")
        for node in reversed(chain):
            if node not in self._worlds:
                parent = self._parents[node]
                own = _local(self._nodes[node], node)
                self._worlds[node] = own if parent is None else self._worlds[parent] @ own
        return self._worlds[index]

    def skin(self, index: int, primitive: dict[str, Any], positions: np.ndarray) -> np.ndarray | None:
        """Positions [M, 3] of a skinned primitive in the scene, by its joints alone; None for one without a skin.

        The node's own matrix does not count (specification, section 3.7.3.3).
        """
        node, attributes = self._nodes[index], primitive["attributes"]
        if "skin" not in node or "JOINTS_0" not in attributes:
            return None
        skins = items(self._document, "skins")
        number = node["skin"]
        if type(number) is not int or not 0 <= number < len(skins):
            raise Malformed(f"node {index} names skin {str(number)[:20]!r}; there are {len(skins)}")
        joints = self._numbers(skins[number].get("joints"), f"skin {number}")
        matrices = np.stack([self.world(joint) for joint in joints])  # [J, 4, 4]
        if "inverseBindMatrices" in skins[number]:
            bind = self._accessors.floats(skins[number]["inverseBindMatrices"], "MAT4")
            if len(bind) < len(joints):
                raise Malformed(f"skin {number} has {len(joints)} joints and {len(bind)} inverse bind matrices")
            matrices = matrices @ bind[: len(joints)].reshape(-1, 4, 4).transpose(0, 2, 1)
        moved, total = np.zeros((len(positions), 3)), np.zeros(len(positions))
        for k in range(8):
            if f"JOINTS_{k}" not in attributes:
                break
            named = self._accessors.joints(attributes[f"JOINTS_{k}"])
            shares = self._accessors.floats(attributes.get(f"WEIGHTS_{k}"), "VEC4")
            if len(named) != len(positions) or len(shares) != len(positions):
                raise Malformed(f"{len(positions)} vertices have {len(named)} joints and {len(shares)} weights")
            for column in range(4):
                share = shares[:, column]
                used = share != 0
                if used.any() and named[used, column].max() >= len(joints):
                    raise Malformed(f"a vertex names joint {int(named[used, column].max())} of {len(joints)}")
                place = matrices[np.where(used, named[:, column], 0)]  # [M, 4, 4]
                moved += share[:, None] * (np.einsum("nij,nj->ni", place[:, :3, :3], positions) + place[:, :3, 3])
                total += share
        if (total <= 0).any():
            raise Malformed(f"{int((total <= 0).sum())} vertices of a skinned mesh have no weights")
        return moved / total[:, None]

    def _family(self) -> list[int | None]:
        parents: list[int | None] = [None] * len(self._nodes)
        for index in range(len(self._nodes)):
            for child in self._children(index):
                if parents[child] is not None or child == index:
                    raise Malformed(f"node {child} has two parents")
                parents[child] = index
        return parents

    def _children(self, index: int) -> list[int]:
        return self._numbers(self._nodes[index].get("children", []), f"node {index}")

    def _numbers(self, found: Any, owner: str) -> list[int]:
        if not isinstance(found, list) or not all(type(one) is int and 0 <= one < len(self._nodes) for one in found):
            raise Malformed(f"{owner} names nodes {str(found)[:40]}; there are {len(self._nodes)}")
        return found


def instance_matrices(node: dict[str, Any], world: np.ndarray, accessors: Accessors) -> list[np.ndarray]:
    """Where a node's mesh is drawn: once, or once for each instance of EXT_mesh_gpu_instancing."""
    extension = (node.get("extensions") or {}).get(INSTANCING)
    if extension is None:
        return [world]
    attributes = extension.get("attributes") if isinstance(extension, dict) else None
    if not isinstance(attributes, dict):
        raise Malformed(f"its {INSTANCING} has no attributes")
    found = {
        name: accessors.floats(attributes[name], kind)
        for name, kind in (("TRANSLATION", "VEC3"), ("ROTATION", "VEC4"), ("SCALE", "VEC3"))
        if name in attributes
    }
    counts = {len(values) for values in found.values()}
    if len(counts) != 1:
        raise Malformed(f"its {INSTANCING} has attributes of {sorted(counts)} instances")
    count = counts.pop()
    moved = found.get("TRANSLATION", np.zeros((count, 3)))
    turned = found.get("ROTATION", np.tile([0.0, 0.0, 0.0, 1.0], (count, 1)))
    scaled = found.get("SCALE", np.ones((count, 3)))
    return [world @ _composed(moved[k], turned[k], scaled[k]) for k in range(count)]


def _local(node: dict[str, Any], index: int) -> np.ndarray:
    def numbers(key: str, count: int, default: list[float]) -> np.ndarray:
        value = node.get(key, default)
        if (
            not isinstance(value, list)
            or len(value) != count
            or not all(type(one) in (int, float) and abs(one) < 1e300 for one in value)
        ):
            raise Malformed(f"node {index} has {key} {str(value)[:60]}; expected {count} finite numbers")
        return np.array(value, np.float64)

    if "matrix" in node:
        return numbers("matrix", 16, []).reshape(4, 4).T
    return _composed(
        numbers("translation", 3, [0, 0, 0]), numbers("rotation", 4, [0, 0, 0, 1]), numbers("scale", 3, [1, 1, 1])
    )


def _composed(moved: np.ndarray, turned: np.ndarray, scaled: np.ndarray) -> np.ndarray:
    """Translation times rotation (a unit quaternion x, y, z, w) times scale, [4, 4]."""
    x, y, z, w = turned
    matrix = np.eye(4)
    matrix[:3, :3] = scaled * np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
    matrix[:3, 3] = moved
    return matrix
