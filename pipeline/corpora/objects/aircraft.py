"""Other things that fly: helicopter (its nose at -y) and rocket (upright)."""

import numpy as np

from pipeline.corpora.objects.primitives import (
    circle,
    cylinder,
    ellipsoid,
    fuselage,
    join,
    loft,
    revolve,
    torus,
    tube,
    wing,
)
from pipeline.corpora.objects.sketch import Category, Sketch

__all__ = ["CATEGORIES"]


def draw_helicopter(s: Sketch) -> None:
    """Draw a helicopter: a cabin, a main rotor, a tail boom with its rotor, and skids or wheels."""
    w, length, h = s.between(0.75, 0.95), s.between(2.6, 3.6), s.between(1.3, 1.6)
    bubble = s.choose("cabin", {"bubble": 2, "long": 2})
    if bubble == "bubble":
        s.add("cabin", ellipsoid((0, 0, 0), (w, length * 0.36, h / 2), n=22, rings=13))
        rear = length * 0.28
    else:
        stations = [
            (0, 0.15, -0.3),
            (0.06, 0.55, -0.2),
            (0.18, 0.92, -0.05),
            (0.35, 1, 0),
            (0.75, 1, 0),
            (0.92, 0.75, 0.2),
            (1, 0.4, 0.4),
        ]
        s.add("cabin", fuselage(length * 1.15, h / 2, stations, flat=w / (h / 2)))
        rear = length * 0.5
    boom = s.between(2.6, 3.6)
    high = h * 0.2
    s.add(
        "tail boom", cylinder((0, rear - 0.3, high * 0.6), (0, rear + boom, high + 0.2), h * s.between(0.14, 0.2), 0.1)
    )
    end = rear + boom
    s.add(
        "fin",
        wing((0, end - 0.35, high), (0, end + 0.15, high + s.between(0.7, 1.0)), 0.6, 0.35),
        wing((0, end - 0.3, high + 0.2), (0, end, high - 0.4), 0.5, 0.3),
    )
    s.add_pair(
        "tailplane", wing((0.05, end - 0.9, high + 0.15), (s.between(0.6, 0.9), end - 0.8, high + 0.15), 0.4, 0.3)
    )
    top = h / 2 + s.between(0.25, 0.45)
    s.add(
        "mast",
        cylinder((0, 0, h * 0.4), (0, 0, top + 0.06), 0.1),
        ellipsoid((0, 0.15, h * 0.48), (w * 0.5, length * 0.2, h * 0.14), n=14, rings=8),
    )
    blades, r, phase = s.count("rotor blades", 2, 5), s.between(3.3, 4.2), s.between(0, np.pi)
    droop = s.between(0.0, 0.08)
    for k in range(blades):
        a = phase + 2 * np.pi * k / blades
        c, sn = np.cos(a), np.sin(a)
        half = 0.15
        ring = [
            [
                (c * d - sn * o, sn * d + c * o, top + dz - droop * (d / r) ** 2 * r)
                for o, dz in ((-half, 0), (0, 0.03), (half, 0), (0, -0.03))
            ]
            for d in (0.05, r * 0.5, r)
        ]
        s.add("rotor blade", loft(np.array(ring)))
    tr = s.between(0.5, 0.7)
    tail_phase = s.between(0, np.pi)
    tail = [
        loft(
            np.array(
                [
                    [
                        (0.16 + dx, end + np.cos(a) * d - np.sin(a) * o, high + 0.35 + np.sin(a) * d + np.cos(a) * o)
                        for o, dx in ((-0.06, 0), (0, 0.02), (0.06, 0), (0, -0.02))
                    ]
                    for d in (0, tr)
                ]
            )
        )
        for a in tail_phase + np.arange(2 + 2 * s.chance(0.4)) * np.pi / 2 * (2 if blades < 4 else 1)
    ]
    s.add("tail rotor", join(*tail, cylinder((0, end, high + 0.35), (0.2, end, high + 0.35), 0.05, n=8)))
    gear = s.choose("landing gear", {"skids": 3, "wheels": 1.2})
    floor = -h / 2 - s.between(0.35, 0.5)
    if gear == "skids":
        x, y = w * s.between(0.85, 1.1), length * 0.42
        path = np.array(
            [(x, -y - 0.15, floor + 0.18), (x, -y, floor + 0.02), (x, -y * 0.5, floor), (x, y * 0.9, floor)]
        )
        s.add_pair("skid", tube(path, 0.05, n=8))
        for place in (-y * 0.5, y * 0.5):
            s.add_pair("skid", cylinder((w * 0.4, place, -h * 0.38), (x, place, floor), 0.04, n=6))
    else:
        for x, y in ((w * 0.8, length * 0.2), (-w * 0.8, length * 0.2), (0, -length * 0.32)):
            s.add(
                "wheel",
                join(
                    torus((x, y, floor + 0.12), 0.14, 0.07, axis="x", n=14, sides=6),
                    cylinder((x * 0.7, y, -h * 0.3), (x, y, floor + 0.15), 0.05, n=6),
                ),
            )


def draw_rocket(s: Sketch) -> None:
    """Draw an upright rocket: stages, a nose cone, fins, nozzles, sometimes boosters or landing legs."""
    h, r = 10.0, s.between(0.5, 0.9)
    stages = s.count("stages", 1, 3)
    narrow = s.between(0.7, 0.95)
    nose = h * s.between(0.16, 0.3)
    edges = np.linspace(0.6, h - nose, stages + 1)
    radius = r
    for k in range(stages):
        low, high = edges[k], edges[k + 1]
        if k:
            s.add("body", cylinder((0, 0, low - 0.25), (0, 0, low), radius / narrow, radius, n=24, caps=False))
        s.add("body", cylinder((0, 0, low), (0, 0, high - (0.25 if k < stages - 1 else 0)), radius, n=24))
        if k < stages - 1:
            radius *= narrow
    t = np.linspace(0, 1, 12)
    form = s.choose("nose", {"ogive": 3, "cone": 1.5, "round": 1})
    profile = {"ogive": np.sqrt(1 - t**1.7), "cone": 1 - t, "round": np.sqrt(1 - t**2)}[form]
    s.add("nose", revolve(np.stack([radius * profile, h - nose + t * nose * (0.6 if form == "round" else 1)], -1)))
    if s.maybe("escape tower", 0.2):
        s.add("tower", cylinder((0, 0, h - 0.2), (0, 0, h + 1.2), 0.07, n=8))
    nozzles = s.choose("nozzles", {"1": 2, "3": 1, "5": 1})
    spots = (
        [(0.0, 0.0)]
        if nozzles == "1"
        else [(x * r * 0.55, y * r * 0.55) for x, y in circle(3 if nozzles == "3" else 4)]
        + ([(0.0, 0.0)] if nozzles == "5" else [])
    )
    big = r * (0.6 if nozzles == "1" else 0.28)
    for x, y in spots:
        s.add("nozzle", revolve([(big * 0.35, 0.65), (big * 0.6, 0.35), (big, 0.0)], at=(x, y, 0), n=16))
    boosters = s.maybe("boosters", 0.35)
    if boosters:
        n = 2 if s.chance(0.5) else 4
        s.facts["booster count"] = n
        br, bh = r * s.between(0.4, 0.6), h * s.between(0.35, 0.55)
        for x, y in circle(n):
            at = (x * (r + br), y * (r + br), 0.3)
            s.add(
                "booster",
                revolve(
                    [(0, 0), (br * 0.8, 0), (br, 0.4), (br, bh), (br * 0.6, bh + br), (0, bh + 2 * br)], at=at, n=16
                ),
            )
    if s.maybe("fins", 0.3 if boosters else 0.85):
        n = s.count("fin count", 3, 4)
        reach, tall, drop = r * s.between(0.9, 1.6), h * s.between(0.14, 0.24), s.between(-0.6, 0.5)
        for k in range(n):
            a = 2 * np.pi * (k + 0.5) / n
            c, sn = np.cos(a), np.sin(a)
            thick = 0.06
            flat = [
                (r * 0.9, 0.7 + tall),
                (r + reach, 0.7 + tall * 0.25 + drop),
                (r + reach, drop + 0.2),
                (r * 0.9, 0.7),
            ]
            s.add(
                "fin", loft(np.array([[(c * d - sn * o, sn * d + c * o, z) for d, z in flat] for o in (-thick, thick)]))
            )
    elif not boosters and s.maybe("landing legs", 0.5):
        for x, y in circle(4):
            s.add("leg", cylinder((x * r, y * r, 1.8), (x * r * 2.2, y * r * 2.2, -0.3), 0.1, n=8))
    if s.maybe("window", 0.4):
        s.add("window", torus((0, -radius, h - nose - 0.6), 0.26, 0.08, axis="y", n=16, sides=6))
    if s.maybe("bands", 0.4):
        s.add(
            "band",
            *(
                torus((0, 0, z), r * (narrow ** (np.searchsorted(edges[1:-1], z))), 0.07, n=24, sides=6)
                for z in (h * 0.25, h * 0.45)
            ),
        )


CATEGORIES = (
    Category(
        "helicopter",
        ("cabin", "tail boom", "fin", "tailplane", "mast", "rotor blade", "tail rotor", "skid", "wheel"),
        draw_helicopter,
    ),
    Category("rocket", ("body", "nose", "tower", "nozzle", "booster", "fin", "leg", "window", "band"), draw_rocket),
)
