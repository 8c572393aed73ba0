"""Areas of triangles, and points spread uniformly over a surface."""

import numpy as np

__all__ = ["sample_surface", "triangle_areas"]


def triangle_areas(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Compute areas of triangles: [M, 3], [F, 3] -> [F] float64."""
    a = vertices[faces[:, 0]]
    u, v = vertices[faces[:, 1]] - a, vertices[faces[:, 2]] - a
    x = u[:, 1] * v[:, 2] - u[:, 2] * v[:, 1]
    y = u[:, 2] * v[:, 0] - u[:, 0] * v[:, 2]
    z = u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0]
    return 0.5 * np.sqrt(x * x + y * y + z * z)


def sample_surface(vertices: np.ndarray, faces: np.ndarray, uniform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sample points uniformly over the surface.

    vertices, faces  [M, 3] float64, [F, 3] int
    uniform          [n, 3] float64 in 0..1: which triangle (by area), and two numbers within it. Point k depends on row
                     k only.
    ->               points [n, 3] float64, triangle of each point [n] int64

    Raises ValueError when the whole area is zero or not finite.
    """
    cumulative = np.cumsum(triangle_areas(vertices, faces)) if len(faces) else np.zeros(1)
    total = cumulative[-1]
    if not (total > 0 and np.isfinite(total)):
        raise ValueError(f"the surface has area {total}")
    chosen = np.searchsorted(cumulative, uniform[:, 0] * total, side="right")
    chosen = np.minimum(chosen, len(faces) - 1)  # uniform < 1, but its product may round up to the total
    root = np.sqrt(uniform[:, 1:2])  # the square root makes the density even: Osada et al. 2002, section 4
    across = uniform[:, 2:3]
    corners = vertices[faces[chosen]]  # [n, 3, 3]
    points = (1 - root) * corners[:, 0] + root * (1 - across) * corners[:, 1] + root * across * corners[:, 2]
    return points, chosen
