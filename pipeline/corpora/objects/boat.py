"""The boat: with sails, with oars, with an engine, or a ship. Its bow is at -y."""

import numpy as np

from pipeline.corpora.objects.primitives import Mesh, box, cylinder, join, loft, rounded_box, shifted, tube, wing
from pipeline.corpora.objects.sketch import Category, Sketch

__all__ = ["CATEGORIES"]


def draw_boat(s: Sketch) -> None:
    """Draw a boat: a hull with sails, with oars and thwarts, with a cabin, or a long freighter."""
    kind = s.choose("kind", {"sailing boat": 3, "rowing boat": 2, "motor boat": 2, "ship": 2})
    if kind == "ship":
        length, beam, depth = s.between(9, 12), s.between(1.5, 1.9), s.between(1.0, 1.4)
        hull = _hull(length, beam, depth, stern=0.8, rocker=0.3, vee=0)
        s.add("hull", loft(hull, caps=True, ring_closed=True))
        y, z = length / 2, depth
        back = s.chance(0.6)
        house = (y * 0.55, y * 0.9) if back else (-y * 0.15, y * 0.3)
        floors = s.count("decks", 2, 4)
        for k in range(floors):
            shrink = k * 0.12
            s.add(
                "cabin",
                box(
                    (-beam * 0.42 + shrink, house[0] + shrink, z + k * 0.5),
                    (beam * 0.42 - shrink, house[1] - shrink, z + (k + 1) * 0.5 - 0.04),
                ),
            )
        roof = z + floors * 0.5
        for k in range(s.count("funnels", 1, 3)):
            at = house[0] + 0.6 + k * 0.55
            s.add("funnel", cylinder((0, at, roof - 0.1), (0, at + 0.12, roof + s.between(0.5, 0.8)), 0.2, 0.17, n=14))
        if s.maybe("containers", 0.5) and back:
            stacks = s.count("container rows", 3, 6)
            step = (house[0] + y * 0.62) / stacks
            for k in range(stacks):
                s.add(
                    "container",
                    box(
                        (-beam * 0.4, -y * 0.62 + k * step, z),
                        (beam * 0.4, -y * 0.62 + (k + 0.9) * step, z + 0.35 * (1 + int(s.between(0, 3)))),
                    ),
                )
        else:
            s.add(
                "mast",
                *(cylinder((0, y * a, z), (0, y * a, z + s.between(1.4, 2.2)), 0.06, 0.03, n=8) for a in (-0.6, -0.2)),
            )
            s.add("mast", cylinder((0, -y * 0.6, z + 0.5), (0, -y * 0.35, z + 1.3), 0.03, n=6))
        return
    length = {"sailing boat": s.between(5, 7), "rowing boat": s.between(3, 4), "motor boat": s.between(5, 7)}[kind]
    beam, depth = length * s.between(0.27, 0.36), length * s.between(0.1, 0.14)
    y = length / 2
    hull = _hull(
        length,
        beam,
        depth,
        stern=s.between(0.6, 0.85),
        rocker=s.between(0.3, 0.8),
        vee=1.0 if kind == "motor boat" else s.between(0, 0.7),
    )
    if kind == "rowing boat":
        inner = hull * (0.9, 0.95, 1) + (0, 0, 0.05 * depth)
        s.add("hull", loft(hull, caps=False, ring_closed=False), loft(inner, caps=False, ring_closed=False))
        s.add("hull", tube(np.concatenate([hull[::-1, 0], hull[:, -1]]), 0.03, n=6))
        for t in np.linspace(0.35, 0.8, s.count("thwarts", 2, 3)):
            row = hull[int(t * 12)]
            s.add(
                "thwart",
                box(
                    (row[0, 0] * 0.95, row[0, 1] - 0.12, depth * 0.7),
                    (row[-1, 0] * 0.95, row[0, 1] + 0.12, depth * 0.78),
                ),
            )
        if s.maybe("oars", 0.8):
            for side in (-1, 1):
                pin, blade = (
                    np.array([side * beam * 0.5, 0.0, depth * 1.08]),
                    np.array([side * (beam * 0.5 + length * 0.3), s.between(-0.5, 0.4), -0.05]),
                )
                grip = pin + (pin - blade) * 0.45
                tip = blade + (blade - pin) * 0.2
                s.add(
                    "oar",
                    join(
                        cylinder(grip, blade, 0.025, n=8),
                        tube([blade, (blade + tip) / 2, tip], [0.04, 0.09, 0.08], n=8, flat=0.25),
                    ),
                )
        return
    s.add("hull", loft(hull))
    if kind == "motor boat":
        z = depth * 1.05
        a = -y * s.between(0.1, 0.3)
        end = y * s.between(0.3, 0.6)
        w = beam * 0.36
        s.add(
            "cabin",
            loft(
                np.array(
                    [
                        [
                            (-w * k, yy, z - 0.1),
                            (w * k, yy, z - 0.1),
                            (w * k * 0.85, yy2, z + hh),
                            (-w * k * 0.85, yy2, z + hh),
                        ]
                        for yy, yy2, k, hh in (
                            (a - 0.6, a, 0.8, length * 0.09),
                            (a + 0.2, a + 0.3, 1, length * 0.11),
                            (end, end - 0.1, 1, length * 0.1),
                        )
                    ]
                )
            ),
        )
        if s.maybe("flybridge", 0.35):
            s.add(
                "cabin",
                rounded_box((-w * 0.6, a + 0.5, z + length * 0.1), (w * 0.6, end - 0.3, z + length * 0.16), 0.08),
            )
        s.add("engine", rounded_box((-0.18, y - 0.05, depth * 0.2), (0.18, y + 0.35, depth * 1.4), 0.08))
        rail = shifted(np.concatenate([hull[6:0:-1, 0], hull[1:7, -1]]) * (0.92, 1, 1), 0, 0, length * 0.05)
        s.add("rail", tube(rail, 0.025, n=6))
        return
    mast, high = -y * s.between(0.05, 0.2), length * s.between(1.1, 1.4)
    s.add("mast", cylinder((0, mast, depth * 0.8), (0, mast, depth + high), 0.05, 0.03, n=8))
    boom = y * s.between(0.65, 0.95)
    foot = depth + length * 0.1
    s.add("boom", cylinder((0, mast, foot), (0, boom, foot), 0.035, n=8))
    s.add(
        "sail",
        _sail(
            (0, mast + 0.08, foot + 0.05),
            (0, boom, foot + 0.05),
            (0, mast + 0.08, depth + high * 0.97),
            s.between(0.04, 0.12) * length,
        ),
    )
    if s.maybe("jib", 0.8):
        s.add(
            "sail",
            _sail(
                (0, -y * 0.95, depth * 1.35),
                (0, mast - 0.1, foot + 0.02),
                (0, mast - 0.06, depth + high * s.between(0.7, 0.95)),
                s.between(0.04, 0.1) * length,
            ),
        )
    if s.maybe("cabin", 0.5):
        s.add(
            "cabin",
            rounded_box(
                (-beam * 0.24, mast + 0.1, depth * 0.9), (beam * 0.24, mast + length * 0.25, depth * 1.45), 0.08
            ),
        )
    if s.maybe("keel", 0.6):
        s.add(
            "keel",
            wing((0, -length * 0.06, depth * 0.2), (0, length * 0.02, -length * 0.14), length * 0.16, length * 0.1),
        )
        s.add("rudder", box((-0.02, y - 0.1, -depth * 0.5), (0.02, y + 0.12, depth * 0.8)))


def _hull(length: float, beam: float, depth: float, *, stern: float, rocker: float, vee: float) -> np.ndarray:
    """Build the cross-sections of a hull [R, 9, 3], open upwards; the deck edge is at z = depth."""
    rows = []
    for t in np.linspace(0, 1, 13):
        wide = (
            beam
            / 2
            * (np.sin(min(t * 1.55, 1) * np.pi / 2) ** 0.8 if t < 0.65 else 1 - (1 - stern) * ((t - 0.65) / 0.35) ** 2)
        )
        keel = rocker * depth * (1 - min(t * 2.2, 1)) ** 2
        sheer = depth * (1 + 0.28 * (1 - t) ** 3)
        u = np.linspace(-1, 1, 9)
        z = keel + (sheer - keel) * (np.abs(u) ** (1.2 if vee > 0.5 else 2.4))
        rows.append(
            np.stack(
                [
                    wide * np.sign(u) * np.abs(u) ** 0.7 if vee > 0.5 else wide * np.sin(u * np.pi / 2),
                    np.full(9, (t - 0.5) * length),
                    z,
                ],
                -1,
            )
        )
    hull = np.stack(rows)
    hull[0, :, 0] *= 0.05  # the stem
    return hull


def _sail(
    tack: tuple[float, float, float], clew: tuple[float, float, float], head: tuple[float, float, float], belly: float
) -> Mesh:
    """Build a triangular sail that bulges to one side by ``belly``."""
    rows = []
    for t in np.linspace(0, 0.98, 9):
        a, b = np.array(tack) * (1 - t) + np.array(head) * t, np.array(clew) * (1 - t) + np.array(head) * t
        u = np.linspace(0, 1, 8)[:, None]
        rows.append(a * (1 - u) + b * u + np.array([belly, 0, 0]) * np.sin(np.pi * u) * (1 - t))
    return loft(np.stack(rows), caps=False, ring_closed=False)


CATEGORIES = (
    Category(
        "boat",
        (
            "hull",
            "mast",
            "boom",
            "sail",
            "cabin",
            "funnel",
            "container",
            "thwart",
            "oar",
            "engine",
            "rail",
            "keel",
            "rudder",
        ),
        draw_boat,
    ),
)
