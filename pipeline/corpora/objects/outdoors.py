"""Things that stand outside: tent, tree, house, windmill."""

import numpy as np

from pipeline.corpora.objects.primitives import (
    bend,
    box,
    circle,
    cylinder,
    ellipsoid,
    join,
    loft,
    move,
    polygon_prism,
    revolve,
    shifted,
    torus,
    tube,
    turn,
)
from pipeline.corpora.objects.sketch import Category, Sketch

__all__ = ["CATEGORIES"]


def draw_tent(s: Sketch) -> None:
    """Draw a ridge tent, a dome, a tipi or a tunnel, with poles and guy ropes."""
    kind = s.choose("kind", {"ridge": 2, "dome": 2, "tipi": 1.5, "tunnel": 1})
    if kind == "ridge":
        w, d, h = s.between(1.5, 2.3), s.between(2.0, 3.0), s.between(1.1, 1.7)
        x, y = w / 2, d / 2
        for side in (-1, 1):
            s.add(
                "canvas",
                loft(
                    np.array(
                        [
                            [(side * x, -y, 0), (side * x, y, 0)],
                            [(side * x * 0.48, -y, h * 0.48), (side * x * 0.48, y, h * 0.48)],
                            [(0, -y, h), (0, y, h)],
                        ]
                    ),
                    caps=False,
                    ring_closed=False,
                ),
            )
        s.add(
            "end",
            loft(np.array([[(-x, y, 0), (x, y, 0)], [(-0.01, y, h), (0.01, y, h)]]), caps=False, ring_closed=False),
        )
        opening = s.between(0.15, 0.7)
        for side in (-1, 1):
            s.add(
                "flap",
                loft(
                    np.array(
                        [
                            [(side * x, -y, 0), (side * x * opening, -y - 0.15 * opening, 0)],
                            [(0.0, -y, h), (0.01 * side, -y, h)],
                        ]
                    ),
                    caps=False,
                    ring_closed=False,
                ),
            )
        s.add(
            "pole",
            *(cylinder((0, b * y, 0), (0, b * y, h + 0.08), 0.03, n=8) for b in (-1, 1)),
            cylinder((0, -y, h), (0, y, h), 0.025, n=8),
        )
        if s.maybe("guy ropes", 0.6):
            s.add("rope", *(cylinder((0, b * y, h), (0, b * (y + 0.9), 0), 0.012, n=4) for b in (-1, 1)))
            s.add(
                "rope",
                *(
                    cylinder((a * x * 0.5, b * y * 0.9, h * 0.5), (a * (x + 0.5), b * y * 0.9, 0), 0.012, n=4)
                    for a in (-1, 1)
                    for b in (-1, 1)
                ),
            )
    elif kind == "dome":
        r, h, n = s.between(1.1, 1.5), s.between(1.0, 1.4), s.count("poles", 4, 6)
        t = np.linspace(0, np.pi / 2, 9)
        unit = circle(n)
        rings = np.array([[(x * r * np.cos(a), y * r * np.cos(a), h * np.sin(a)) for x, y in unit] for a in t])
        s.add("canvas", loft(rings, caps=False))
        arches = [
            np.array([(x * (r + 0.02) * np.cos(a), y * (r + 0.02) * np.cos(a), (h + 0.02) * np.sin(a)) for a in t])
            for x, y in unit
        ]
        s.add("pole", *(tube(path, 0.022, n=6) for path in arches))
        # The porch is pulled out over the side that faces the front.
        side = int(np.argmin(unit[:, 1] + np.roll(unit[:, 1], -1)))
        a0, a1 = unit[side] * r, unit[(side + 1) % n] * r
        tip = (a0 + a1) / 2 * s.between(1.35, 1.65)
        peak = (*((a0 + a1) * 0.27), h * 0.8)
        for foot in (a0, a1):
            s.add(
                "porch",
                loft(
                    np.array([[(*foot, 0.0), (*tip, 0.02)], [peak, (*(tip * 0.999), 0.03)]]),
                    caps=False,
                    ring_closed=False,
                ),
            )
    elif kind == "tipi":
        r, h, n = s.between(1.1, 1.5), s.between(2.0, 2.8), s.count("poles", 6, 10)
        unit = circle(24)
        gap = 3  # sides left open for the door
        ring = unit[gap:]
        rings = np.array(
            [
                [(x * r * a, y * r * a, h * (1 - a)) for x, y in np.roll(unit, -3, axis=0)[: len(ring) + 1]]
                for a in (1, 0.66, 0.33, 0.07)
            ]
        )
        body = loft(rings, caps=False, ring_closed=False)
        s.add("canvas", turn(body, "z", -np.pi / 2 - 0.05))
        cross = 0.12
        s.add(
            "pole",
            *(
                cylinder(
                    (x * (r + 0.03), y * (r + 0.03), 0), (-x * r * cross, -y * r * cross, h * (1 + cross)), 0.026, n=6
                )
                for x, y in circle(n)
            ),
        )
    else:
        r, d, n = s.between(0.9, 1.2), s.between(2.8, 3.8), s.count("hoops", 3, 5)
        t = np.linspace(0, np.pi, 13)
        stations = np.linspace(-d / 2, d / 2, n)
        scale_ = 1 - 0.28 * (np.abs(np.linspace(-1, 1, n)) ** 2) * s.between(0.3, 1.0)
        rings = np.array(
            [
                [(r * k * np.cos(a), y, r * k * 1.05 * np.sin(a)) for a in t]
                for y, k in zip(stations, scale_, strict=True)
            ]
        )
        s.add("canvas", loft(rings, caps=False, ring_closed=False))
        s.add(
            "end",
            loft(np.stack([rings[-1], rings[-1] * (0.05, 1, 0.05) + (0, 0.45, 0)]), caps=False, ring_closed=False),
        )
        s.add("pole", *(tube(ring * (1.02, 1, 1.02), 0.028, n=6) for ring in rings))


def draw_tree(s: Sketch) -> None:
    """Draw a broad-leaved tree, a conifer, a palm, or bare branches."""
    kind = s.choose("kind", {"broadleaf": 2.5, "conifer": 2.5, "palm": 1.5, "bare": 1.2})
    if kind == "conifer":
        h, tiers = s.between(4.0, 6.0), s.count("tiers", 3, 6)
        s.add("trunk", cylinder((0, 0, 0), (0, 0, h * 0.9), 0.16, 0.05))
        low, r = h * s.between(0.12, 0.2), h * s.between(0.2, 0.3)
        for k in range(tiers):
            a, b = k / tiers, (k + 1.45) / tiers
            wide = r * (1 - 0.78 * a)
            s.add(
                "foliage",
                revolve(
                    [
                        (wide * 0.25, low + (h - low) * a + 0.1),
                        (wide, low + (h - low) * a),
                        (0.02, low + (h - low) * min(b, 1.0)),
                    ],
                    n=20,
                ),
            )
        return
    if kind == "palm":
        h, lean = s.between(4, 6), s.between(0.0, 1.2)
        trunk = bend((0, 0, 0), (0, 0, h * 0.6), (lean, 0, h), 10)
        s.add("trunk", tube(trunk, np.linspace(0.2, 0.12, 10) * (1 + 0.1 * (np.arange(10) % 2)), n=10))
        for k in range(s.count("fronds", 6, 10)):
            a = 2.4 * k + s.between(-0.2, 0.2)
            reach, drop = s.between(1.3, 1.9), s.between(0.3, 1.2)
            x, y = np.cos(a), np.sin(a)
            path = bend(
                (lean, 0, h),
                (lean + x * reach * 0.6, y * reach * 0.6, h + 0.7),
                (lean + x * reach, y * reach, h - drop),
                9,
            )
            half = 0.28 * np.sin(np.linspace(0.15, np.pi, 9)) + 0.015  # half width along the frond
            across = np.array([-y, x, 0.0])
            fold = np.array([0, 0, -0.35])
            rings = np.stack(
                [path - half[:, None] * (across - fold), path, path + half[:, None] * (across + fold)], axis=1
            )
            s.add("foliage", loft(rings, caps=False, ring_closed=False))
        return
    h = s.between(1.4, 2.4) if kind == "broadleaf" else s.between(1.2, 1.8)
    girth = s.between(0.12, 0.24)
    s.add(
        "trunk",
        tube(
            [(0, 0, 0), (0, 0, 0.15), (0.03, 0, h * 0.6), (0, 0.03, h)],
            [girth * 1.7, girth * 1.15, girth, girth * 0.85],
            n=12,
        ),
    )
    boughs = s.count("boughs", 3, 6)
    tips = []
    for k in range(boughs):
        a, rise, reach = 2 * np.pi * (k + s.between(-0.2, 0.2)) / boughs, s.between(0.6, 1.4), s.between(0.5, 1.2)
        end = np.array([np.cos(a) * reach, np.sin(a) * reach, h + rise])
        s.add(
            "branch",
            tube(
                bend((0, 0, h * 0.92), (end[0] * 0.3, end[1] * 0.3, h + rise * 0.6), end, 6),
                np.linspace(girth * 0.6, girth * 0.25, 6),
                n=8,
            ),
        )
        tips.append(end)
    if kind == "broadleaf":
        form = s.choose("crown", {"clumps": 2, "round": 1, "tall": 1})
        if form == "clumps":
            for end in [*tips, np.array([0, 0, h + 1.4])]:
                b = s.between(0.5, 0.8)
                s.add("foliage", ellipsoid(end, (b, b, b * s.between(0.75, 1.0)), n=16, rings=9))
        else:
            b = s.between(1.1, 1.5)
            crown = ellipsoid((0, 0, h + b * 0.8), (b, b, b * (0.95 if form == "round" else 1.7)), n=24, rings=13)
            v = crown.vertices
            bumps = 1 + 0.07 * np.sin(5 * v[:, 0] + 1.3) * np.sin(6 * v[:, 1]) + 0.05 * np.sin(7 * v[:, 2])
            centre = np.array([0, 0, h + b * 0.8])
            s.add(
                "foliage",
                crown._replace(
                    vertices=(v - centre) * bumps[:, None] + centre + (0, 0, b * (0 if form == "round" else 0.7))
                ),
            )
        return
    for end in tips:
        for _ in range(3):
            a, up = s.between(0, 2 * np.pi), s.between(0.3, 0.9)
            twig = shifted(end, np.cos(a) * 0.55, np.sin(a) * 0.55, up)
            s.add(
                "branch",
                tube(bend(end, shifted(end, 0, 0, up * 0.5), twig, 5), np.linspace(girth * 0.25, girth * 0.08, 5), n=6),
            )
            for _ in range(2):
                a = s.between(0, 2 * np.pi)
                s.add(
                    "branch",
                    cylinder(
                        twig,
                        shifted(twig, np.cos(a) * 0.3, np.sin(a) * 0.3, s.between(0.15, 0.4)),
                        girth * 0.08,
                        girth * 0.03,
                        n=5,
                    ),
                )


def draw_house(s: Sketch) -> None:
    """Draw a house: walls, a roof, a door, windows; at times a chimney or a porch."""
    w, d = s.between(5, 8), s.between(4.5, 7)
    floors = s.count("floors", 1, 3)
    h = 2.6 * floors
    x, y = w / 2, d / 2
    s.add("wall", box((-x, -y, 0), (x, y, h)))
    over = s.between(0.2, 0.5)
    roof = s.choose("roof", {"gable": 3, "hip": 1.5, "flat": 0.8})
    rise = s.between(0.3, 0.6) * d if roof != "flat" else 0.3
    top = h + rise
    if roof == "flat":
        s.add("roof", box((-x - over, -y - over, h), (x + over, y + over, h + 0.3)))
    elif roof == "gable":
        outline = np.array([(-y - over, h - 0.1), (0, top), (y + over, h - 0.1), (0, top - 0.25)])
        for a, b in ((0, 1), (1, 2)):
            (y0, z0), (y1, z1) = outline[a], outline[b]
            quad = [[(-x - over, y0, z0), (x + over, y0, z0)], [(-x - over, y1, z1), (x + over, y1, z1)]]
            s.add(
                "roof",
                loft(np.array(quad), caps=False, ring_closed=False),
                loft(shifted(np.array(quad), 0, 0, 0.15), caps=False, ring_closed=False),
            )
        s.add(
            "wall",
            polygon_prism([(-y, h), (y, h), (0, h + rise * (y / (y + over)))], x - 0.02, x, axis="x"),
            polygon_prism([(-y, h), (y, h), (0, h + rise * (y / (y + over)))], -x, -x + 0.02, axis="x"),
        )
    else:
        ridge = max(x - y, 0.1)
        eaves = [(-x - over, -y - over, h), (x + over, -y - over, h), (x + over, y + over, h), (-x - over, y + over, h)]
        s.add(
            "roof",
            loft(
                np.array([eaves, [(-ridge, -0.02, top), (ridge, -0.02, top), (ridge, 0.02, top), (-ridge, 0.02, top)]])
            ),
        )
    columns = s.count("windows a floor", 2, 4)
    door = int(s.between(0, columns + 1))
    step = w / (columns + 1)
    for floor in range(floors):
        for k in range(columns + 1):
            cx, z = -x + (k + 0.5) * step, floor * 2.6
            if floor == 0 and k == min(door, columns):
                s.add("door", box((cx - 0.5, -y - 0.08, 0), (cx + 0.5, -y, 2.1)))
            else:
                s.add(
                    "window",
                    join(
                        *(box((cx + a, -y - 0.1, z + 0.9), (cx + a + 0.12, -y, z + 2.1)) for a in (-0.5, -0.06, 0.38)),
                        box((cx - 0.5, -y - 0.1, z + 0.9), (cx + 0.5, -y, z + 1.02)),
                        box((cx - 0.5, -y - 0.1, z + 1.98), (cx + 0.5, -y, z + 2.1)),
                    ),
                )
        for side in (-1, 1):
            for cy in (-0.5 * y, 0.5 * y):
                low, high = sorted((side * x, side * (x + 0.1)))
                s.add("window", box((low, cy - 0.45, floor * 2.6 + 0.9), (high, cy + 0.45, floor * 2.6 + 2.1)))
    if s.maybe("chimney", 0.6) and roof != "flat":
        cx = x * s.between(-0.7, 0.7)
        s.add("chimney", box((cx - 0.35, y * 0.25, h), (cx + 0.35, y * 0.25 + 0.7, top + s.between(0.3, 0.9))))
    if s.maybe("porch", 0.35):
        cx = -x + (min(door, columns) + 0.5) * step
        s.add(
            "porch",
            box((cx - 1.1, -y - 1.4, 2.25), (cx + 1.1, -y, 2.4)),
            *(cylinder((cx + a, -y - 1.3, 0), (cx + a, -y - 1.3, 2.3), 0.09, n=8) for a in (-1, 1)),
            box((cx - 1.1, -y - 1.4, 0), (cx + 1.1, -y, 0.15)),
        )


def draw_windmill(s: Sketch) -> None:
    """Draw a windmill, a tower with sails, or a modern wind turbine."""
    kind = s.choose("kind", {"mill": 1.5, "turbine": 1})
    phase = s.between(0, np.pi / 2)
    if kind == "turbine":
        h, r = 8.0, s.between(3.2, 4.4)
        s.add("tower", cylinder((0, 0, 0), (0, 0, h), 0.28, 0.15, n=16))
        s.add("cap", tube([(0, -0.5, h), (0, -0.3, h), (0, 0.6, h), (0, 0.8, h)], [0.2, 0.28, 0.26, 0.15], n=12))
        s.add("hub", ellipsoid((0, -0.6, h), (0.24, 0.35, 0.24), n=14, rings=8))
        n = s.count("blades", 3, 3)
        for k in range(n):
            a = phase + 2 * np.pi * k / n
            c, sn = np.cos(a), np.sin(a)
            rows = [
                [
                    (c * t - sn * o * wdt, -0.62 + dy * wdt, h + sn * t + c * o * wdt)
                    for o, dy in ((-1, 0), (0, 0.25), (1, 0), (0, -0.25))
                ]
                for t, wdt in ((0.1, 0.1), (r * 0.2, 0.22), (r * 0.6, 0.13), (r, 0.03))
            ]
            s.add("blade", loft(np.array(rows)))
        return
    h, r = s.between(4.5, 6), s.between(1.2, 1.6)
    sides = 28 if s.choose("tower", {"round": 1, "octagonal": 1}) == "round" else 8
    waist = s.between(0.55, 0.75)
    s.add("tower", revolve([(r, 0), (r * (1 + waist) / 2 * 0.96, h * 0.5), (r * waist, h)], n=sides, caps=True))
    form = s.choose("cap", {"cone": 2, "dome": 1.5})
    t = np.linspace(0, np.pi / 2, 8)
    cr = r * waist * 1.12
    s.add(
        "cap",
        revolve(
            [(cr, h), (0.03, h + cr * 1.2)]
            if form == "cone"
            else np.stack([cr * np.cos(t), h + cr * 0.95 * np.sin(t)], -1)
        ),
    )
    hub = np.array([0, -cr * 1.25, h + cr * 0.25])
    s.add("hub", cylinder((0, 0, hub[2]), shifted(hub, 0, -0.1, 0), 0.14))
    reach = h * s.between(0.55, 0.72)
    for k in range(4):
        a = phase + k * np.pi / 2
        cloth = box((0.05, -0.02, reach * 0.2), (reach * s.between(0.16, 0.2), 0.02, reach))
        bars = [cylinder((0, 0, 0), (0, 0, reach), 0.07, 0.04, n=8)]
        bars += [cylinder((0, 0, z), (reach * 0.2, 0, z), 0.025, n=5) for z in np.linspace(reach * 0.2, reach, 6)]
        s.add("blade", move(turn(join(cloth, *bars), "y", a), hub))
    s.add("door", box((-0.45, -r - 0.02, 0), (0.45, -r * 0.85, 1.3)))
    if s.maybe("gallery", 0.5):
        z = h * s.between(0.3, 0.42)
        g = r * 1.35
        s.add(
            "gallery",
            revolve([(r * 0.8, z), (g, z), (g, z + 0.08), (r * 0.8, z + 0.08)], n=sides),
            torus((0, 0, z + 0.55), g, 0.04, n=28, sides=6),
        )
        s.add("gallery", *(cylinder((x * g, y * g, z), (x * g, y * g, z + 0.55), 0.025, n=5) for x, y in circle(12)))


CATEGORIES = (
    Category("tent", ("canvas", "end", "flap", "porch", "pole", "rope"), draw_tent),
    Category("tree", ("trunk", "branch", "foliage"), draw_tree),
    Category("house", ("wall", "roof", "door", "window", "chimney", "porch"), draw_house),
    Category("windmill", ("tower", "cap", "hub", "blade", "door", "gallery"), draw_windmill),
)
