"""Things with four wheels and more: car, truck. Their length runs along y, the nose at -y."""

import numpy as np

from pipeline.corpora.objects.primitives import (
    Mesh,
    box,
    cylinder,
    ellipsoid,
    join,
    loft,
    rounded_box,
    torus,
    tube,
    turn,
)
from pipeline.corpora.objects.sketch import Category, Sketch

__all__ = ["CATEGORIES"]


def draw_car(s: Sketch) -> None:
    """Draw a car on four wheels: sedan, hatchback, van, pickup, sports car or convertible."""
    kind = s.choose(
        "kind",
        {"sedan": 3, "hatchback": 2, "sports car": 1.5, "van": 1.5, "pickup": 1.5, "convertible": 1, "off-roader": 1.2},
    )
    length = {
        "sedan": 4.6,
        "hatchback": 3.9,
        "sports car": 4.4,
        "van": 4.8,
        "pickup": 5.2,
        "convertible": 4.3,
        "off-roader": 4.4,
    }[kind] * s.between(0.93, 1.07)
    half, y = s.between(0.84, 0.94), length / 2
    wheel = s.between(0.3, 0.36) * (1.2 if kind in ("off-roader", "pickup") else 1.0)
    clear = wheel * s.between(0.55, 0.75) * (1.3 if kind == "off-roader" else 1.0)
    waist = {"sports car": 0.78, "van": 1.0, "pickup": 1.05, "off-roader": 1.1}.get(kind, 0.9) * s.between(0.95, 1.05)
    roof = waist + {"sports car": 0.38, "van": 0.9, "pickup": 0.62, "off-roader": 0.68}.get(kind, 0.52) * s.between(
        0.92, 1.08
    )
    hood = waist - s.between(0.04, 0.14)
    nose, tail = s.between(0.55, 0.72) * waist, s.between(0.88, 1.0) * waist
    if kind == "van":
        nose, hood = waist * 0.85, waist
    middle = waist if kind == "van" else hood + 0.03
    sections = [
        (-y, half * 0.82, half * 0.78, clear + 0.06, nose),
        (-y + 0.25, half, half * 0.93, clear, (nose + hood) / 2 + 0.04),
        (-y * 0.45, half, half * 0.95, clear, middle),
        (-y * 0.3, half, half * 0.96, clear, waist),
        (y * 0.55, half, half * 0.96, clear, waist),
        (y - 0.22, half, half * 0.92, clear, tail),
        (y, half * 0.85, half * 0.8, clear + 0.08, tail * 0.95),
    ]
    s.add("body", _body(sections, 0.12))
    front, back = -y * s.between(0.62, 0.68), y * s.between(0.6, 0.68)
    slope = {  # windscreen, roof from and to, and end of the cabin, as shares of the half length
        "sedan": (-0.36, -0.08, 0.36, 0.66),
        "hatchback": (-0.4, -0.1, 0.66, 0.92),
        "sports car": (-0.3, 0.02, 0.3, 0.86),
        "van": (-0.82, -0.6, 0.93, 0.98),
        "pickup": (-0.38, -0.15, 0.12, 0.18),
        "off-roader": (-0.42, -0.3, 0.9, 0.95),
        "convertible": (-0.3, -0.12, 0, 0),
    }[kind]
    a, b, c, d = (v * y for v in slope)
    inner = half * 0.9
    top = half * s.between(0.68, 0.8)
    if kind == "convertible":
        screen = np.array(
            [
                [
                    (sx * inner, a, waist - 0.02),
                    (sx * top, b, roof - 0.12),
                    (sx * top, b + 0.03, roof - 0.12),
                    (sx * inner, a + 0.05, waist - 0.02),
                ]
                for sx in (-1, 1)
            ]
        )
        s.add("windscreen", loft(screen))
        for x in (-0.38, 0.38):
            for row in (0.12, 0.55)[: s.count("seat rows", 1, 2)]:
                s.add(
                    "seat",
                    rounded_box((x - 0.25, row * y, waist - 0.05), (x + 0.25, row * y + 0.16, waist + 0.32), 0.06),
                )
        s.add("steering wheel", torus((-0.38, a + 0.42, waist + 0.08), 0.17, 0.02, axis="y", n=16, sides=6))
    else:
        s.add(
            "cabin",
            _body(
                [
                    (a, inner, inner, waist - 0.06, waist),
                    (b, inner, top, waist - 0.06, roof - 0.02),
                    ((b + c) / 2, inner, top, waist - 0.06, roof),
                    (c, inner, top, waist - 0.06, roof - 0.03),
                    (d, inner, inner * 0.95, waist - 0.06, waist),
                ],
                0.1,
            ),
        )
        if s.maybe("roof rack", 0.15):
            s.add_pair(
                "roof rack", cylinder((top * 0.8, b + 0.1, roof + 0.06), (top * 0.8, c - 0.1, roof + 0.06), 0.025, n=8)
            )
    if kind == "pickup":
        bed = (0.2 * y, y)
        s.add(
            "bed",
            *(
                box((sx * half * 0.9 - 0.04, bed[0], waist - 0.05), (sx * half * 0.9 + 0.04, bed[1], waist + 0.18))
                for sx in (-1, 1)
            ),
            box((-half * 0.9, y - 0.08, waist - 0.05), (half * 0.9, y, waist + 0.18)),
        )
    for place in (front, back):
        s.add_pair("wheel", _wheel(half - 0.08, place, wheel, 0.22))
    s.add_pair("mirror", ellipsoid((half + 0.09, a + 0.25, waist + 0.08), (0.1, 0.06, 0.07), n=10, rings=6))
    s.add_pair(
        "light", ellipsoid((half * 0.62, -y + 0.02, (clear + nose) / 2 + 0.14), (0.13, 0.07, 0.08), n=12, rings=7)
    )
    s.add(
        "bumper",
        rounded_box((-half * 0.85, -y - 0.08, clear + 0.02), (half * 0.85, -y + 0.1, clear + 0.2), 0.06),
        rounded_box((-half * 0.85, y - 0.1, clear + 0.02), (half * 0.85, y + 0.08, clear + 0.2), 0.06),
    )
    if s.maybe("spoiler", 0.6 if kind == "sports car" else 0.03):
        z = tail + 0.22
        s.add(
            "spoiler",
            join(
                box((-half * 0.85, y - 0.32, z), (half * 0.85, y - 0.05, z + 0.04)),
                *(box((x - 0.03, y - 0.25, tail * 0.9), (x + 0.03, y - 0.1, z)) for x in (-0.5, 0.5)),
            ),
        )


def draw_truck(s: Sketch) -> None:
    """Draw a lorry: a cab and a box, tank, flat bed, dumper or bus body, on two to five axles."""
    load = s.choose("load", {"box": 2.5, "tank": 1.5, "flat bed": 1, "dumper": 1.2, "bus": 1.5})
    half, wheel = s.between(1.1, 1.25), s.between(0.45, 0.55)
    deck = wheel * s.between(1.7, 2.0)
    if load == "bus":
        length, top = s.between(8, 11.5), s.between(2.7, 3.1)
        y = length / 2
        s.add("load", rounded_box((-half, -y, wheel * 0.8), (half, y, top), 0.2))
        rows = s.count("windows", 4, 8)
        step = length * 0.9 / rows
        for sx in (-1, 1):
            s.add(
                "window",
                *(
                    box(
                        (sx * half - 0.02, -y * 0.9 + k * step + 0.08, top * 0.55),
                        (sx * half + 0.02, -y * 0.9 + (k + 1) * step - 0.08, top * 0.82),
                    )
                    for k in range(rows)
                ),
            )
        s.add("window", box((-half * 0.85, -y - 0.02, top * 0.5), (half * 0.85, -y + 0.01, top * 0.85)))
        for place in (-0.64 * y, 0.56 * y):
            s.add_pair("wheel", _wheel(half - 0.15, place, wheel, 0.32))
        s.add_pair(
            "mirror", rounded_box((half + 0.05, -y - 0.15, top * 0.55), (half + 0.2, -y - 0.05, top * 0.75), 0.04)
        )
        return
    length, cab = s.between(6.0, 11.0), s.between(1.6, 2.1)
    y, height = length / 2, s.between(2.5, 3.0)
    if s.choose("cab", {"flat nose": 2, "long nose": 1.2}) == "flat nose":
        s.add("cab", rounded_box((-half, -y, deck * 0.7), (half, -y + cab, height), 0.18))
        s.add("window", box((-half * 0.85, -y - 0.02, height * 0.62), (half * 0.85, -y + 0.02, height * 0.9)))
        front = -y + cab * 0.5
    else:
        nose = s.between(1.0, 1.4)
        s.add(
            "cab",
            rounded_box((-half, -y + nose, deck * 0.7), (half, -y + nose + cab, height), 0.15),
            rounded_box((-half * 0.8, -y, deck * 0.75), (half * 0.8, -y + nose + 0.1, height * 0.6), 0.15),
        )
        s.add(
            "window",
            box((-half * 0.85, -y + nose - 0.02, height * 0.64), (half * 0.85, -y + nose + 0.02, height * 0.92)),
        )
        front = -y + nose * 0.7
        cab += nose
    start = -y + cab + 0.25
    s.add("chassis", box((-half * 0.5, -y + 0.4, deck * 0.75), (half * 0.5, y, deck)))
    if load == "box":
        s.add("load", box((-half, start, deck), (half, y, height * s.between(1.05, 1.4))))
    elif load == "tank":
        r = s.between(0.9, 1.1)
        bulge = np.array([(0.0, 0.7), (0.03, 0.92), (0.08, 1.0), (0.92, 1.0), (0.97, 0.92), (1.0, 0.7)])
        path = np.stack([0 * bulge[:, 0], start + bulge[:, 0] * (y - start), np.full(6, deck + r)], -1)
        s.add("load", tube(path, r * bulge[:, 1], n=22))
        s.add(
            "hatch",
            *(
                cylinder(
                    (0, start + (y - start) * a, deck + 2 * r - 0.05),
                    (0, start + (y - start) * a, deck + 2 * r + 0.12),
                    0.25,
                )
                for a in (0.3, 0.7)
            ),
        )
    elif load == "dumper":
        low, high = deck + 0.1, deck + s.between(1.1, 1.5)
        rings = [
            [(-half * a, start - o, z), (half * a, start - o, z), (half * a, y, z), (-half * a, y, z)]
            for a, o, z in ((0.75, 0, low), (1, 0.1, high), (0.94, 0.05, high), (0.7, -0.06, low + 0.08))
        ]
        body = loft(np.array(rings))
        s.add("load", turn(body, "x", s.between(0.2, 0.6), about=(0, y - 0.3, low)) if s.maybe("tipped", 0.4) else body)
    else:
        s.add(
            "load",
            box((-half, start, deck), (half, y, deck + 0.12)),
            box((-half, start, deck), (half, start + 0.1, height * 0.75)),
        )
        for k in range(s.count("crates", 0, 3)):
            at = start + 0.4 + k * (y - start) / 3.2
            s.add(
                "crate",
                box((-half * 0.7, at, deck + 0.12), (half * 0.7, at + s.between(0.8, 1.3), deck + s.between(0.8, 1.5))),
            )
    rear = s.count("rear axles", 1, 3)
    for place in [front] + [y - 0.7 - k * 2.1 * wheel for k in range(rear)]:
        s.add_pair("wheel", _wheel(half - 0.18, place, wheel, 0.32))
    s.add_pair(
        "mirror",
        rounded_box(
            (half + 0.05, -y + cab * 0.3, height * 0.6), (half + 0.2, -y + cab * 0.3 + 0.08, height * 0.85), 0.03
        ),
    )
    if s.maybe("exhaust stack", 0.35):
        s.add_pair(
            "exhaust",
            cylinder((half * 0.85, start - 0.15, deck), (half * 0.85, start - 0.15, height * 1.15), 0.08, n=10),
        )


def _body(sections: list[tuple[float, float, float, float, float]], rounding: float) -> Mesh:
    """Build a hull through cross-sections (y, half width at the bottom, half width at the top, bottom z, top z)."""
    rings = []
    for y, low_x, high_x, low, high in sections:
        soft = min(rounding, 0.45 * (high - low), 0.45 * high_x)
        side = [
            (low_x, low),
            (max(low_x, high_x), low + 0.45 * (high - low)),
            (high_x, high - soft),
            (high_x - 0.3 * soft, high - 0.3 * soft),
            (high_x - soft, high),
        ]
        outline = side + [(-x, z) for x, z in reversed(side)]
        rings.append([(x, y, z) for x, z in outline])
    return loft(np.array(rings))


def _wheel(x: float, y: float, r: float, width: float) -> Mesh:
    """Build a tyre and its disc, the axle along x, standing on the floor."""
    tyre = torus((x, y, r), r - 0.42 * width, 0.42 * width, axis="x", n=22, sides=8)
    disc = cylinder((x - 0.3 * width, y, r), (x + 0.3 * width, y, r), r - 0.6 * width, n=16)
    return join(tyre, disc)


CATEGORIES = (
    Category(
        "car",
        (
            "body",
            "cabin",
            "windscreen",
            "wheel",
            "mirror",
            "light",
            "bumper",
            "bed",
            "seat",
            "steering wheel",
            "spoiler",
            "roof rack",
        ),
        draw_car,
    ),
    Category("truck", ("cab", "chassis", "load", "window", "wheel", "mirror", "hatch", "crate", "exhaust"), draw_truck),
)
