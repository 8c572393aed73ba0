"""Parametric solids as triangle meshes.

Everything is built on one idea, ``loft``: a stack of rings with the same number of vertices, joined by quads and closed
by caps. A box, a cylinder, a bottle, a wing and a car's body differ only in how their rings are made. Coordinates are
float64; z is up and the front of an object looks along -y.
"""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

__all__ = [
    "Mesh",
    "bend",
    "box",
    "circle",
    "cylinder",
    "ellipsoid",
    "fuselage",
    "join",
    "loft",
    "mirror",
    "move",
    "pillow",
    "polygon_prism",
    "revolve",
    "rounded_box",
    "rounded_rectangle",
    "shifted",
    "torus",
    "tube",
    "turn",
    "wing",
]

Vector = Sequence[float] | np.ndarray


class Mesh(NamedTuple):
    """A triangle mesh.

    Attributes:
        vertices: [M, 3] float64
        faces: [F, 3] int64 into vertices; no orientation is promised
    """

    vertices: np.ndarray
    faces: np.ndarray


# ---- the loft and what is made of it -----------------------------------------------------------------------


@cache
def _loft_faces(rings: int, n: int, ring_closed: bool, path_closed: bool, caps: bool) -> np.ndarray:
    """Return faces over vertices numbered ring by ring; the two cap centres, when there are caps, come last."""
    columns = n if ring_closed else n - 1
    rows = rings if path_closed else rings - 1
    i, j = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    a, b = i * n + j, i * n + (j + 1) % n
    c, d = (i + 1) % rings * n + j, (i + 1) % rings * n + (j + 1) % n
    faces = [np.stack([a, b, d], -1).reshape(-1, 3), np.stack([a, d, c], -1).reshape(-1, 3)]
    if caps:
        edge, after = np.arange(n), (np.arange(n) + 1) % n
        first, last = rings * n, rings * n + 1
        faces.append(np.stack([np.full(n, first), after, edge], -1))
        faces.append(np.stack([np.full(n, last), edge + (rings - 1) * n, after + (rings - 1) * n], -1))
    result = np.concatenate(faces)
    result.flags.writeable = False  # shared by every mesh of this topology
    return result


def loft(rings: np.ndarray, *, caps: bool = True, ring_closed: bool = True, path_closed: bool = False) -> Mesh:
    """Join a stack of rings [R, n, 3] by quads; caps are fans around the mean of the first and of the last ring."""
    R, n, _ = rings.shape
    vertices = rings.reshape(R * n, 3)
    if caps:
        vertices = np.concatenate([vertices, rings[0].mean(axis=0)[None], rings[-1].mean(axis=0)[None]])
    return Mesh(vertices, _loft_faces(R, n, ring_closed, path_closed, caps))


@cache
def circle(n: int) -> np.ndarray:
    """Return n points on the unit circle: [n, 2]."""
    angle = np.arange(n) * (2 * np.pi / n)
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1)


def rounded_rectangle(width: float, height: float, radius: float, corner: int = 4) -> np.ndarray:
    """Return a rectangle around the origin with rounded corners: [4 * corner, 2]."""
    radius = min(radius, 0.499 * width, 0.499 * height)
    angle = np.linspace(0, np.pi / 2, corner)
    quarter = np.stack([np.cos(angle), np.sin(angle)], axis=-1) * radius
    centre = np.array([width / 2 - radius, height / 2 - radius])
    q = quarter + centre
    r = q[::-1]
    return np.concatenate([q, r * [-1, 1], q * [-1, -1], r * [1, -1]])


def box(low: Vector, high: Vector, *, top: tuple[float, float] = (1.0, 1.0)) -> Mesh:
    """Build a box between two corners; ``top`` shrinks its upper face about its centre in x and y."""
    (x0, y0, z0), (x1, y1, z1) = low, high
    cx, cy, hx, hy = (x0 + x1) / 2, (y0 + y1) / 2, (x1 - x0) / 2, (y1 - y0) / 2
    tx, ty = hx * top[0], hy * top[1]
    vertices = np.array(
        [
            (cx - hx, cy - hy, z0), (cx + hx, cy - hy, z0), (cx + hx, cy + hy, z0), (cx - hx, cy + hy, z0),
            (cx - tx, cy - ty, z1), (cx + tx, cy - ty, z1), (cx + tx, cy + ty, z1), (cx - tx, cy + ty, z1),
        ]
    )  # fmt: skip
    return Mesh(vertices, _BOX_FACES)


_BOX_FACES = np.array(
    [
        (0, 1, 2),
        (0, 2, 3),
        (4, 5, 6),
        (4, 6, 7),
        (0, 1, 5),
        (0, 5, 4),
        (1, 2, 6),
        (1, 6, 5),
        (2, 3, 7),
        (2, 7, 6),
        (3, 0, 4),
        (3, 4, 7),
    ]
)


def rounded_box(low: Vector, high: Vector, radius: float) -> Mesh:
    """Build a box with all edges rounded by ``radius`` (less where the box is thin)."""
    low, high = np.asarray(low, float), np.asarray(high, float)
    size = high - low
    radius = min(radius, 0.49 * float(size.min()))
    rings = []
    for angle in np.linspace(-np.pi / 2, 0, 3):
        inset = radius * (1 - np.cos(angle))
        rings.append((inset, low[2] + radius * (1 + np.sin(angle))))
    rings += [(inset, high[2] + low[2] - z) for inset, z in reversed(rings)]
    centre = (low + high) / 2
    stack = np.empty((len(rings), 16, 3))
    for k, (inset, z) in enumerate(rings):
        w, h = size[0] - 2 * inset, size[1] - 2 * inset
        stack[k, :, :2] = rounded_rectangle(w, h, max(radius - inset, 1e-3 * radius)) + centre[:2]
        stack[k, :, 2] = z
    return loft(stack)


def pillow(low: Vector, high: Vector, power: float = 4.0) -> Mesh:
    """Build a soft cushion: a superellipsoid that fills the box between two corners."""
    low, high = np.asarray(low, float), np.asarray(high, float)
    return Mesh(_superellipsoid(power) * ((high - low) / 2) + (low + high) / 2, _loft_faces(9, 20, True, False, False))


@cache
def _superellipsoid(power: float) -> np.ndarray:
    angle = np.arange(20) * (2 * np.pi / 20) + np.pi / 20
    rise = np.linspace(-np.pi / 2, np.pi / 2, 9)
    exponent = 2 / power
    across, up = np.abs(np.cos(rise)) ** exponent, np.sign(np.sin(rise)) * np.abs(np.sin(rise)) ** exponent
    x = np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** exponent
    y = np.sign(np.sin(angle)) * np.abs(np.sin(angle)) ** exponent
    return np.stack([np.outer(across, x), np.outer(across, y), np.outer(up, np.ones(20))], axis=-1).reshape(-1, 3)


def revolve(
    profile: Sequence[Sequence[float]] | np.ndarray, *, at: Vector = (0, 0, 0), n: int = 28, caps: bool = False
) -> Mesh:
    """Rotate a profile of (radius, z) about the vertical line through ``at``."""
    profile = np.asarray(profile, dtype=float)
    unit = circle(n)
    rings = np.empty((len(profile), n, 3))
    rings[:, :, 0] = profile[:, :1] * unit[:, 0] + at[0]
    rings[:, :, 1] = profile[:, :1] * unit[:, 1] + at[1]
    rings[:, :, 2] = profile[:, 1:] + at[2]
    return loft(rings, caps=caps)


def ellipsoid(centre: Vector, radii: Vector, *, n: int = 20, rings: int = 11) -> Mesh:
    """Build an ellipsoid with its axes along x, y and z."""
    angle = np.linspace(-np.pi / 2, np.pi / 2, rings)
    mesh = revolve(np.stack([np.cos(angle), np.sin(angle)], axis=-1), n=n)
    return Mesh(mesh.vertices * np.asarray(radii, float) + np.asarray(centre, float), mesh.faces)


def cylinder(
    start: Vector, end: Vector, radius: float, end_radius: float | None = None, *, n: int = 14, caps: bool = True
) -> Mesh:
    """Build a cylinder, cone or frustum from ``start`` to ``end``."""
    ends = np.array([start, end], dtype=float)
    first, second = _frame(ends[1] - ends[0])
    unit = circle(n)
    ring = unit[:, :1] * first + unit[:, 1:] * second  # [n, 3]
    radii = np.array([radius, radius if end_radius is None else end_radius])
    return loft(ends[:, None] + radii[:, None, None] * ring, caps=caps)


def tube(
    path: Sequence[Vector] | np.ndarray,
    radius: float | Sequence[float] | np.ndarray,
    *,
    n: int = 10,
    closed: bool = False,
    flat: float = 1.0,
) -> Mesh:
    """Build a tube along a path [R, 3]; ``radius`` may vary along it, ``flat`` scales it across its first normal."""
    path = np.asarray(path, dtype=float)
    R = len(path)
    tangent = np.roll(path, -1, axis=0) - np.roll(path, 1, axis=0) if closed else np.gradient(path, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True) + 1e-12
    first, _ = _frame(tangent[0])
    normals = np.empty((R, 3))
    for k in range(R):  # carry the frame along, so that the tube does not twist
        first = first - tangent[k] * (first @ tangent[k])
        first = first / (np.sqrt(first @ first) + 1e-12)
        normals[k] = first
    second = np.cross(tangent, normals)
    radii = np.broadcast_to(np.asarray(radius, dtype=float), (R,))[:, None, None]
    unit = circle(n)
    rings = path[:, None] + radii * (flat * unit[None, :, :1] * normals[:, None] + unit[None, :, 1:] * second[:, None])
    return loft(rings, caps=not closed, path_closed=closed)


def torus(centre: Vector, ring_radius: float, radius: float, *, axis: str = "z", n: int = 28, sides: int = 10) -> Mesh:
    """Build a torus around an axis direction "x", "y" or "z"."""
    ring, section = circle(n), circle(sides)
    reach = ring_radius + radius * section[:, 0]
    rings = np.empty((n, sides, 3))
    along = "xyz".index(axis)
    a, b = (along + 1) % 3, (along + 2) % 3
    rings[:, :, a] = ring[:, :1] * reach
    rings[:, :, b] = ring[:, 1:] * reach
    rings[:, :, along] = radius * section[:, 1]
    return loft(rings + np.asarray(centre, float), caps=False, path_closed=True)


def polygon_prism(outline: Sequence[Sequence[float]] | np.ndarray, low: float, high: float, *, axis: str = "z") -> Mesh:
    """Extrude an outline along an axis, from ``low`` to ``high``.

    outline  [n, 2] in the plane of the other two axes, in the order x, y, z (for axis "y": x and z); it must be
             star-shaped about its mean.
    """
    outline = np.asarray(outline, dtype=float)
    along = "xyz".index(axis)
    a, b = [k for k in range(3) if k != along]
    rings = np.empty((2, len(outline), 3))
    rings[:, :, a] = outline[:, 0]
    rings[:, :, b] = outline[:, 1]
    rings[:, :, along] = np.array([low, high])[:, None]
    return loft(rings)


def wing(root: Vector, tip: Vector, root_chord: float, tip_chord: float, thickness: float = 0.12) -> Mesh:
    """Build a tapered wing from ``root`` to ``tip``, both at the leading edge.

    Its chord runs along +y, its thickness is a share of the chord.

    The section is a symmetric NACA four-digit profile in the direction across chord and span.
    """
    root, tip = np.asarray(root, float), np.asarray(tip, float)
    span = tip - root
    normal = np.array([span[2], 0.0, -span[0]])
    normal /= np.linalg.norm(normal) + 1e-12
    y, z = _AIRFOIL[:, :1], _AIRFOIL[:, 1:] * thickness
    section = y * np.array([0.0, 1.0, 0.0]) + z * normal  # [16, 3], chord 1
    return loft(np.stack([root + root_chord * section, tip + tip_chord * section]))


def _airfoil() -> np.ndarray:
    x = (1 - np.cos(np.linspace(0, np.pi, 9))) / 2
    half = 5 * (0.2969 * np.sqrt(x) - 0.126 * x - 0.3516 * x**2 + 0.2843 * x**3 - 0.1036 * x**4)
    return np.concatenate([np.stack([x, half], -1), np.stack([x[-2:0:-1], -half[-2:0:-1]], -1)])


_AIRFOIL = _airfoil()  # [16, 2]: chord 0..1, half thickness for a thickness of 1


def fuselage(length: float, radius: float, stations: Sequence[tuple[float, float, float]], flat: float = 1.0) -> Mesh:
    """Build a round body along y through stations (place 0..1, radius 0..1, rise in radii), ``flat`` in width."""
    place, width, rise = np.array(stations).T
    unit = circle(18)
    rings = np.empty((len(place), 18, 3))
    rings[:, :, 0] = unit[:, 0] * radius * width[:, None] * flat
    rings[:, :, 1] = ((place - 0.5) * length)[:, None]
    rings[:, :, 2] = (unit[:, 1] * width[:, None] + rise[:, None]) * radius
    return loft(rings)


def shifted(point: Vector, x: float, y: float, z: float) -> np.ndarray:
    """Move a point, or points [..., 3], by (x, y, z)."""
    return np.add(point, (x, y, z))


def bend(start: Vector, middle: Vector, end: Vector, n: int = 8) -> np.ndarray:
    """Return a quadratic Bezier curve as a path [n, 3]."""
    t = np.linspace(0, 1, n)[:, None]
    a, b, c = (np.asarray(p, dtype=float) for p in (start, middle, end))
    return (1 - t) ** 2 * a + 2 * t * (1 - t) * b + t**2 * c


# ---- placing -----------------------------------------------------------------------------------------------


def join(*meshes: Mesh) -> Mesh:
    """Join several meshes to one."""
    offsets = np.cumsum([0, *(len(mesh.vertices) for mesh in meshes[:-1])])
    faces = [mesh.faces + offset for mesh, offset in zip(meshes, offsets, strict=True)]
    return Mesh(np.concatenate([mesh.vertices for mesh in meshes]), np.concatenate(faces))


def move(mesh: Mesh, by: Vector) -> Mesh:
    """Shift a mesh."""
    return Mesh(mesh.vertices + np.asarray(by, float), mesh.faces)


def mirror(mesh: Mesh, axis: str = "x") -> Mesh:
    """Mirror a mesh at the origin along one axis."""
    factor = np.ones(3)
    factor["xyz".index(axis)] = -1
    return Mesh(mesh.vertices * factor, mesh.faces)


def turn(mesh: Mesh, axis: str, angle: float, *, about: Vector = (0, 0, 0)) -> Mesh:
    """Rotate a mesh by ``angle`` (radians, right-handed) about an axis direction through ``about``."""
    k = "xyz".index(axis)
    a, b = (k + 1) % 3, (k + 2) % 3
    rotation = np.eye(3)
    rotation[a, a] = rotation[b, b] = np.cos(angle)
    rotation[b, a], rotation[a, b] = np.sin(angle), -np.sin(angle)
    about = np.asarray(about, float)
    return Mesh((mesh.vertices - about) @ rotation.T + about, mesh.faces)


def _frame(direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return two unit vectors across a direction; for a vertical one they are x and y."""
    x, y, z = direction / (np.sqrt(direction @ direction) + 1e-12)
    if abs(z) > 0.999:
        first = np.array([1.0, 0.0, 0.0])
    else:
        first = np.array([-y, x, 0.0]) / np.sqrt(x * x + y * y)  # horizontal
    second = np.array([y * first[2] - z * first[1], z * first[0] - x * first[2], x * first[1] - y * first[0]])
    return first, second / (np.sqrt(second @ second) + 1e-12)
