"""Supports of furniture: legs in several styles, and the star of an office chair."""

import numpy as np

from pipeline.corpora.objects.primitives import Mesh, box, circle, cylinder, ellipsoid, revolve

__all__ = ["four_legs", "leg", "star_base"]


def leg(style: str, foot: tuple[float, float], top: tuple[float, float], height: float, thick: float) -> Mesh:
    """Build one leg from the floor at ``foot`` to ``top`` at ``height``."""
    start, end = (*foot, 0.0), (*top, height)
    if style == "square":
        x, y = top
        h = thick / 2
        return box((x - h, y - h, 0), (x + h, y + h, height))
    if style == "tapered":
        return cylinder(start, end, 0.3 * thick, 0.6 * thick)
    if style == "turned":
        z = np.linspace(0, 1, 12)
        r = thick * (0.42 + 0.16 * np.sin(z * 19) * np.sin(np.pi * z))
        return revolve(np.stack([r, z * height], -1), at=(*top, 0), n=12, caps=True)
    return cylinder(start, end, 0.45 * thick)


def four_legs(style: str, half_x: float, half_y: float, height: float, thick: float, splay: float) -> list[Mesh]:
    """Build legs at the four corners of a rectangle, their feet moved outwards by ``splay``."""
    inner_x, inner_y = half_x - thick / 2, half_y - thick / 2
    return [
        leg(style, (sx * (inner_x + splay), sy * (inner_y + splay)), (sx * inner_x, sy * inner_y), height, thick)
        for sx in (-1, 1)
        for sy in (-1, 1)
    ]


def star_base(arms: int, reach: float, height: float, thick: float, wheels: bool) -> list[Mesh]:
    """Build the base of an office chair: a column and arms, with wheels below them."""
    floor = 0.05 if wheels else 0.01
    pieces = [cylinder((0, 0, floor + 0.02), (0, 0, height), thick * 0.8)]
    for x, y in circle(arms):
        pieces.append(cylinder((0, 0, floor + 0.05), (x * reach, y * reach, floor), thick * 0.7, thick * 0.45, n=8))
        if wheels:
            pieces.append(ellipsoid((x * reach, y * reach, 0.027), (0.027, 0.027, 0.027), n=10, rings=6))
    return pieces
