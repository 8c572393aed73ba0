"""The airplane: airliner, propeller plane, jet fighter, glider, biplane. Its nose is at -y."""

import numpy as np

from pipeline.corpora.objects.primitives import (
    Mesh,
    circle,
    cylinder,
    ellipsoid,
    fuselage,
    join,
    loft,
    move,
    shifted,
    torus,
    tube,
    wing,
)
from pipeline.corpora.objects.sketch import Category, Sketch

__all__ = ["CATEGORIES"]


def draw_airplane(s: Sketch) -> None:
    """Draw an airliner, a propeller plane, a jet fighter, a glider or a biplane."""
    kind = s.choose("kind", {"airliner": 4, "propeller plane": 2, "fighter": 2, "glider": 1, "biplane": 1})
    length = 10.0
    r = (
        length
        * {
            "airliner": s.between(0.05, 0.065),
            "propeller plane": s.between(0.055, 0.07),
            "fighter": s.between(0.04, 0.055),
            "glider": 0.04,
            "biplane": s.between(0.055, 0.065),
        }[kind]
    )
    span = (
        length
        * {
            "airliner": s.between(0.42, 0.55),
            "propeller plane": s.between(0.55, 0.68),
            "fighter": s.between(0.28, 0.38),
            "glider": s.between(0.95, 1.15),
            "biplane": s.between(0.52, 0.65),
        }[kind]
    )
    if kind == "fighter":
        body = [
            (0, 0.02, -0.1),
            (0.1, 0.4, 0),
            (0.25, 0.8, 0.05),
            (0.4, 1, 0.1),
            (0.75, 1, 0.05),
            (0.95, 0.75, 0),
            (1, 0.6, 0),
        ]
        s.add("cockpit", ellipsoid((0, -0.22 * length, r * 0.8), (r * 0.5, length * 0.085, r * 0.55), n=16, rings=9))
    elif kind == "airliner":
        body = [
            (0, 0.05, -0.3),
            (0.025, 0.45, -0.25),
            (0.07, 0.8, -0.12),
            (0.13, 1, 0),
            (0.68, 1, 0),
            (0.85, 0.62, 0.3),
            (0.97, 0.22, 0.6),
            (1, 0.1, 0.65),
        ]
        s.add("cockpit", ellipsoid((0, -0.455 * length, r * 0.35), (r * 0.55, length * 0.022, r * 0.3), n=14, rings=8))
    else:
        body = [
            (0, 0.45, 0),
            (0.03, 0.75, 0),
            (0.15, 0.95, 0),
            (0.3, 1, 0.05),
            (0.5, 0.85, 0.1),
            (0.8, 0.4, 0.25),
            (1, 0.12, 0.35),
        ]
        s.add("cockpit", ellipsoid((0, -0.17 * length, r * 0.95), (r * 0.62, length * 0.09, r * 0.7), n=16, rings=9))
    s.add("fuselage", fuselage(length, r, body))

    level = s.choose("wings", {"low": 3, "middle": 1, "high": 2}) if kind != "biplane" else "low"
    z = {"low": -0.6, "middle": 0.0, "high": 0.85}[level] * r
    sweep = {
        "airliner": s.between(0.35, 0.65),
        "fighter": s.between(0.5, 1.1),
        "propeller plane": s.between(0, 0.08),
        "glider": s.between(0.0, 0.05),
        "biplane": s.between(0, 0.1),
    }[kind]
    chord = (
        length
        * {
            "airliner": s.between(0.16, 0.21),
            "fighter": s.between(0.26, 0.4),
            "propeller plane": s.between(0.14, 0.19),
            "glider": s.between(0.07, 0.09),
            "biplane": s.between(0.14, 0.18),
        }[kind]
    )
    taper = {
        "airliner": s.between(0.22, 0.4),
        "fighter": s.between(0.12, 0.4),
        "propeller plane": s.between(0.6, 1.0),
        "glider": s.between(0.4, 0.6),
        "biplane": s.between(0.8, 1.0),
    }[kind]
    lift = s.between(0.02, 0.12) * (1 if level == "low" else 0.1)
    root_y = (
        length * {"airliner": -0.14, "fighter": -0.06, "propeller plane": -0.2, "glider": -0.18, "biplane": -0.24}[kind]
    )
    tip = np.array([span, root_y + sweep * span, z + lift * span])
    s.add_pair("wing", wing((r * 0.5, root_y, z), tip, chord, chord * taper))
    if kind == "biplane":
        top = r * s.between(2.0, 2.6)
        s.add_pair("wing", wing((0.0, root_y - 0.2, top), (span, root_y - 0.2, top), chord, chord * taper))
        for x in (0.35, 0.8):
            s.add_pair(
                "strut",
                cylinder(
                    (span * x, root_y + chord * 0.3, z + lift * span * x),
                    (span * x, root_y + chord * 0.2, top),
                    0.05,
                    n=6,
                ),
            )
        s.add_pair(
            "strut", cylinder((r * 0.5, root_y + chord * 0.3, r * 0.8), (r * 0.6, root_y + chord * 0.2, top), 0.05, n=6)
        )
    if kind == "airliner" and s.maybe("winglets", 0.5):
        s.add_pair(
            "winglet",
            wing(tip, shifted(tip, 0.12, 0.35, length * s.between(0.05, 0.08)), chord * taper, chord * taper * 0.5),
        )

    tail_y = length * 0.5 - length * s.between(0.14, 0.18)
    fin_h, fin_c = length * s.between(0.11, 0.17), length * s.between(0.11, 0.16)
    tail = s.choose("tail", {"standard": 3, "T-tail": 1.5, "twin fins": 1.5 if kind == "fighter" else 0.0})
    tail_z = r * (0.5 if kind != "fighter" else 0.2)
    if tail == "twin fins":
        s.add_pair("fin", wing((r * 0.8, tail_y, 0), (r * 1.6, tail_y + fin_c * 0.6, fin_h), fin_c, fin_c * 0.5, 0.08))
    else:
        s.add(
            "fin",
            wing(
                (0, tail_y, tail_z * 0.6),
                (0, tail_y + fin_h * s.between(0.3, 0.9), tail_z + fin_h),
                fin_c * 1.15,
                fin_c * 0.55,
                0.1,
            ),
        )
    height = tail_z + fin_h * 0.97 if tail == "T-tail" else (tail_z if kind != "fighter" else 0.0)
    shift = fin_h * 0.5 if tail == "T-tail" else 0.0
    half = length * s.between(0.14, 0.2) * (0.85 if kind == "fighter" else 1)
    s.add_pair(
        "tailplane",
        wing(
            (0.0, tail_y + shift + 0.1, height),
            (half, tail_y + shift + 0.1 + half * min(sweep, 0.6), height),
            fin_c,
            fin_c * 0.55,
        ),
    )

    phase = s.between(0, np.pi)
    if kind == "airliner":
        at_tail = tail == "T-tail" and s.chance(0.6)
        engines = 2 if at_tail else 2 * s.count("engine pairs", 1, 2)
        s.facts["engines"] = engines
        er, el = length * s.between(0.022, 0.032), length * s.between(0.09, 0.12)
        if at_tail:
            s.add_pair("engine", _nacelle(r + er * 1.25, length * 0.22, r * 0.35, er, el))
        else:
            for x in (0.34, 0.62)[: engines // 2]:
                drop = z + lift * span * x - er * (1.25 if level != "high" else 1.1)
                s.add_pair("engine", _nacelle(span * x, root_y + sweep * span * x - el * 0.55, drop, er, el))
    elif kind in ("propeller plane", "biplane"):
        pairs = 0 if kind == "biplane" or s.chance(0.65) else 1
        blades = s.count("blades", 2, 4)
        s.facts["engines"] = 2 * pairs or 1
        pr = length * s.between(0.09, 0.12)
        if pairs:
            x, zz = span * 0.36, z + lift * span * 0.36
            barrel = fuselage(chord * 1.1, r * 0.45, [(0, 0.5, 0), (0.3, 1, 0), (1, 0.3, 0)])
            s.add_pair("engine", move(barrel, (x, root_y + chord * 0.25, zz)))
            s.add_pair("propeller", _propeller(x, root_y - chord * 0.33, zz, pr, blades, phase))
        else:
            s.add("propeller", _propeller(0, -length * 0.505, 0, pr, blades, phase))
    elif kind == "fighter":
        n = s.count("engines", 1, 2)
        s.add(
            "engine",
            *(
                cylinder((x, length * 0.42, 0), (x, length * 0.53, 0), r * 0.6 / n**0.5, r * 0.48 / n**0.5, n=14)
                for x in ((0,) if n == 1 else (-r * 0.45, r * 0.45))
            ),
        )
        if s.maybe("missiles", 0.5):
            for x in (0.5, 0.8):
                zz = z + lift * span * x - r * 0.35
                s.add_pair(
                    "missile",
                    tube(
                        [(span * x, root_y + sweep * span * x - 0.3 + k, zz) for k in (0, 0.25, 1.0, 1.3)],
                        [0.02, 0.09, 0.09, 0.07],
                        n=8,
                    ),
                )
        if s.maybe("canards", 0.3):
            s.add_pair(
                "canard",
                wing(
                    (r * 0.5, -length * 0.2, r * 0.2), (r * 2.4, -length * 0.13, r * 0.2), length * 0.07, length * 0.03
                ),
            )
    else:
        s.facts["engines"] = 0
    if kind in ("propeller plane", "biplane") or s.maybe("landing gear", 0.25):
        wr, drop = length * 0.022, -r - length * s.between(0.05, 0.09)
        for x, y in (
            (r * 1.6, root_y + chord * 0.4),
            (-r * 1.6, root_y + chord * 0.4),
            (0, -length * 0.36 if kind != "biplane" else length * 0.42),
        ):
            s.add(
                "landing gear",
                join(
                    torus((x, y, drop), wr * 0.7, wr * 0.35, axis="x", n=14, sides=6),
                    cylinder((x * 0.5, y, -r * 0.6), (x, y, drop), 0.05, n=6),
                ),
            )


def _nacelle(x: float, y: float, z: float, r: float, long: float) -> Mesh:
    """Build a jet engine open at the front: a barrel with an inner duct."""
    outer = [(0, 0.85), (0.12, 1.0), (0.6, 0.95), (1.0, 0.6), (1.0, 0.45), (0.25, 0.75), (0.0, 0.78)]
    unit = circle(14)
    rings = np.array([[(x + r * k * a, y + long * t, z + r * k * b) for a, b in unit] for t, k in outer])
    return join(
        loft(rings, caps=False, path_closed=True),
        ellipsoid((x, y + long * 0.3, z), (r * 0.4, long * 0.2, r * 0.4), n=10, rings=6),
    )


def _propeller(x: float, y: float, z: float, r: float, blades: int, phase: float) -> Mesh:
    """Build blades that turn about y, with a hub."""
    pieces = [ellipsoid((x, y, z), (r * 0.12, r * 0.2, r * 0.12), n=10, rings=6)]
    for k in range(blades):
        a = phase + 2 * np.pi * k / blades
        end = (x + r * np.cos(a), y, z + r * np.sin(a))
        pieces.append(
            tube(
                [(x, y, z), ((x + end[0]) / 2, y, (z + end[2]) / 2), end], [0.05 * r, 0.1 * r, 0.05 * r], n=6, flat=0.5
            )
        )
    return join(*pieces)


CATEGORIES = (
    Category(
        "airplane",
        (
            "fuselage",
            "wing",
            "tailplane",
            "fin",
            "engine",
            "cockpit",
            "propeller",
            "winglet",
            "strut",
            "landing gear",
            "missile",
            "canard",
        ),
        draw_airplane,
    ),
)
