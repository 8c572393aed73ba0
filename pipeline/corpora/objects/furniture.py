"""Furniture to put things on and in, and to lie on: table, desk, bed, shelf, cabinet."""

import numpy as np

from pipeline.corpora.objects.primitives import (
    Mesh,
    bend,
    box,
    circle,
    cylinder,
    ellipsoid,
    join,
    pillow,
    polygon_prism,
    revolve,
    rounded_box,
    tube,
)
from pipeline.corpora.objects.sketch import Category, Sketch
from pipeline.corpora.objects.supports import four_legs

__all__ = ["CATEGORIES"]


def draw_table(s: Sketch) -> None:
    """Draw a table: a top on legs or on a column, dining to coffee height."""
    top = s.choose("top", {"rectangular": 4, "round": 2, "square": 1.5, "oval": 1.2})
    height = s.choose("height", {"dining": 3, "coffee": 1.5})
    h = s.between(0.68, 0.8) if height == "dining" else s.between(0.32, 0.46)
    w, d, t = s.between(1.1, 2.0), s.between(0.6, 0.95), s.between(0.02, 0.06)
    if top in ("round", "square"):
        w = d = s.between(0.7, 1.3)
    if top in ("round", "oval"):
        ring = circle(36) * (w / 2, d / 2)
        disc = revolve([(0, h - t), (1, h - t), (1, h), (0, h)], n=36)
        s.add("top", Mesh(disc.vertices * (w / 2, d / 2, 1), disc.faces))
        half_x, half_y = abs(ring[4, 0]) * 0.8, abs(ring[4, 0]) * 0.8 * d / w
    else:
        s.add("top", rounded_box((-w / 2, -d / 2, h - t), (w / 2, d / 2, h), 0.3 * t))
        half_x, half_y = w / 2 * s.between(0.85, 0.98), d / 2 * s.between(0.85, 0.98)
    base = s.choose(
        "base",
        {"legs": 5, "pedestal": 3 if top == "round" else 0.8, "trestle": 0 if top in ("round", "square") else 1.5},
    )
    if base == "pedestal":
        f, c = min(w, d) * s.between(0.25, 0.38), s.between(0.03, 0.07)
        if s.chance(0.5):
            s.add(
                "base",
                revolve(
                    [(0, 0), (f, 0), (f, 0.02), (c * 1.5, 0.06), (c, 0.12), (c, h - 0.1), (c * 2, h - t), (0, h - t)]
                ),
            )
        else:
            feet = [
                tube(
                    bend((0, 0, 0.2), (x * f * 0.6, y * f * 0.6, 0.2), (x * f, y * f, 0.02)),
                    np.linspace(c * 0.8, 0.02, 8),
                )
                for x, y in circle(s.count("feet", 3, 4))
            ]
            s.add("base", join(cylinder((0, 0, 0.12), (0, 0, h - t), c), *feet))
    elif base == "trestle":
        for side in (-1, 1):
            x = side * w * 0.36
            s.add(
                "leg",
                join(
                    box((x - 0.03, -d * 0.4, 0), (x + 0.03, d * 0.4, 0.06)),
                    box((x - 0.03, -0.06, 0.05), (x + 0.03, 0.06, h - t)),
                    box((x - 0.03, -d * 0.32, h - t - 0.05), (x + 0.03, d * 0.32, h - t)),
                ),
            )
        s.add("apron", box((-w * 0.36, -0.02, h * 0.3), (w * 0.36, 0.02, h * 0.3 + 0.09)))
    else:
        style = s.choose("leg style", {"square": 3, "round": 1.5, "tapered": 2, "turned": 1.5})
        splay = s.between(0, 0.1) if style in ("round", "tapered") else 0.0
        s.add("leg", *four_legs(style, half_x, half_y, h - 0.5 * t, s.between(0.04, 0.09), splay))
        if top in ("rectangular", "square") and s.maybe("apron", 0.5):
            x, y, a = half_x - 0.03, half_y - 0.03, s.between(0.06, 0.1)
            sides = [box((-x, sy * y - 0.01, h - t - a), (x, sy * y + 0.01, h - t)) for sy in (-1, 1)]
            sides += [box((sx * x - 0.01, -y, h - t - a), (sx * x + 0.01, y, h - t)) for sx in (-1, 1)]
            s.add("apron", join(*sides))
        if height == "coffee" and s.maybe("lower shelf", 0.35):
            s.add("shelf", box((-half_x, -half_y, h * 0.3), (half_x, half_y, h * 0.3 + 0.02)))


def draw_desk(s: Sketch) -> None:
    """Draw a desk: a work top with drawers at one or both sides, perhaps an L, perhaps shelves above."""
    w, d, h, t = s.between(1.1, 1.7), s.between(0.55, 0.75), s.between(0.7, 0.78), s.between(0.02, 0.04)
    s.add("top", rounded_box((-w / 2, -d / 2, h - t), (w / 2, d / 2, h), 0.006))
    y = d / 2 - 0.02
    width = s.between(0.32, 0.44)
    style = s.choose("drawers at", {"one side": 2.5, "both sides": 2, "neither side": 0.8})
    sides = {"one side": (1,), "both sides": (-1, 1), "neither side": ()}[style]
    floor = s.between(0.0, 0.12)
    for side in sides:
        low, high = sorted((side * (w / 2 - 0.02), side * (w / 2 - 0.02 - width)))
        _pedestal(s, low, high, y, h - t, floor)
    for side in (-1, 1):
        if side not in sides or floor > 0.02:
            x = side * (w / 2 - 0.04)
            if side not in sides and s.chance(0.5):
                s.add("side", box((x - 0.015, -y, 0), (x + 0.015, y, h - t)))
            else:
                s.add(
                    "leg",
                    *(box((x - 0.022, b * y - 0.022, 0), (x + 0.022, b * y + 0.022, h - t)) for b in (-0.92, 0.92)),
                )
    s.add("panel", box((-w / 2 + 0.04, y - 0.02, h * s.between(0.3, 0.6)), (w / 2 - 0.04, y, h - t)))
    if s.maybe("hutch", 0.35):
        top, depth = h + s.between(0.3, 0.6), d * 0.4
        boards = [
            box((x - 0.01, d / 2 - depth, h), (x + 0.01, d / 2, top))
            for x in np.linspace(-w / 2 + 0.01, w / 2 - 0.01, s.count("bays", 1, 3) + 1)
        ]
        s.add(
            "hutch",
            join(
                *boards,
                box((-w / 2, d / 2 - depth, top), (w / 2, d / 2, top + 0.02)),
                box((-w / 2, d / 2 - 0.01, h), (w / 2, d / 2, top)),
            ),
        )
    elif s.maybe("return", 0.25):
        side, reach = (1 if s.chance(0.5) else -1), s.between(0.5, 0.8)
        low, high = sorted((side * w / 2, side * (w / 2 - 0.5)))
        s.add("top", box((low, -d / 2 - reach, h - t), (high, -d / 2, h)))
        x = side * (w / 2 - 0.03)
        s.add("side", box((x - 0.015, -d / 2 - reach + 0.02, 0), (x + 0.015, -d / 2, h - t)))


def _pedestal(s: Sketch, x0: float, x1: float, half_y: float, top: float, floor: float) -> None:
    """Add a stack of drawers between x0 and x1, under a desk."""
    s.add("cabinet", box((x0, -half_y, floor), (x1, half_y, top)))
    rows = s.count("drawers", 2, 4)
    high = (top - floor - 0.02) / rows
    for k in range(rows):
        z = floor + 0.01 + k * high
        front = box((x0 + 0.012, -half_y - 0.018, z + 0.008), (x1 - 0.012, -half_y, z + high - 0.008))
        middle = (x0 + x1) / 2
        s.add(
            "drawer",
            join(
                front,
                box(
                    (middle - 0.06, -half_y - 0.04, z + high * 0.5),
                    (middle + 0.06, -half_y - 0.018, z + high * 0.5 + 0.016),
                ),
            ),
        )


def draw_bed(s: Sketch) -> None:
    """Draw a bed: a mattress on a frame, with pillows, a headboard, sometimes posts or a second storey."""
    size = s.choose("size", {"single": 2, "double": 3})
    w, d = (s.between(0.85, 1.05) if size == "single" else s.between(1.4, 1.9)), s.between(1.95, 2.2)
    h, m = s.between(0.2, 0.38), s.between(0.16, 0.28)
    style = s.choose("style", {"headboard": 4, "four-poster": 1, "bunk": 1.0 if size == "single" else 0})
    x, y = w / 2, d / 2
    floors = [h, h + s.between(0.95, 1.15)] if style == "bunk" else [h]
    for z in floors:
        s.add("frame", box((-x - 0.03, -y - 0.03, z - 0.14), (x + 0.03, y + 0.03, z + 0.02)))
        s.add("mattress", rounded_box((-x, -y, z), (x, y, z + m), 0.05))
        pillows = 1 if size == "single" else 2
        for k in range(pillows):
            c = (k - (pillows - 1) / 2) * w / 2
            s.add(
                "pillow",
                pillow((c - 0.3, y - 0.5, z + m - 0.02), (c + 0.3, y - 0.08, z + m + s.between(0.1, 0.16)), 3.0),
            )
    if s.maybe("blanket", 0.6):
        cover = s.between(0.1, 0.5)
        s.add(
            "blanket",
            rounded_box((-x - 0.02, -y - 0.02, h + m * 0.3), (x + 0.02, y - 0.55 - cover, h + m + 0.035), 0.04),
        )
    corner = [(a * (x + 0.01), b * (y + 0.01)) for a in (-1, 1) for b in (-1, 1)]
    if style in ("four-poster", "bunk"):
        top = s.between(1.9, 2.15) if style == "four-poster" else floors[1] + m + 0.3
        s.add("post", *(box((a - 0.035, b - 0.035, 0), (a + 0.035, b + 0.035, top)) for a, b in corner))
        if style == "four-poster":
            rails = [box((-x, b - 0.025, top - 0.06), (x, b + 0.025, top)) for b in (-y, y)] + [
                box((a - 0.025, -y, top - 0.06), (a + 0.025, y, top)) for a in (-x, x)
            ]
            s.add("canopy", join(*rails, box((-x, -y, top), (x, y, top + 0.012))) if s.chance(0.6) else join(*rails))
        else:
            s.add(
                "ladder",
                *(
                    cylinder((x + 0.05, -y + 0.1, z), (x + 0.05, -y + 0.5, z), 0.016, n=8)
                    for z in np.arange(0.25, floors[1], 0.25)
                ),
            )
            s.add("rail", box((x, -y + 0.6, floors[1] + m + 0.12), (x + 0.03, y, floors[1] + m + 0.2)))
    else:
        s.add("leg", *(cylinder((a * 0.95, b * 0.97, 0), (a * 0.95, b * 0.97, h - 0.1), 0.035) for a, b in corner))
    if style != "bunk":
        top = h + m + s.between(0.3, 0.75)
        form = s.choose("headboard", {"panel": 3, "arched": 2, "bars": 2})
        if form == "panel":
            s.add("headboard", rounded_box((-x - 0.04, y + 0.02, 0.1), (x + 0.04, y + 0.09, top), 0.02))
        elif form == "arched":
            angle = np.linspace(0, np.pi, 13)
            arch = np.stack([(x + 0.04) * np.cos(angle), top - 0.25 + 0.25 * np.sin(angle)], -1)
            s.add(
                "headboard",
                polygon_prism(
                    np.concatenate([[(x + 0.04, 0.1)], arch, [(-x - 0.04, 0.1)]]), y + 0.02, y + 0.08, axis="y"
                ),
            )
        else:
            bars = [
                cylinder((c, y + 0.04, h), (c, y + 0.04, top), 0.014, n=8) for c in np.linspace(-x, x, int(6 + w * 4))
            ]
            s.add("headboard", join(*bars, cylinder((-x, y + 0.04, top), (x, y + 0.04, top), 0.025)))
        if s.maybe("footboard", 0.45):
            s.add(
                "footboard",
                rounded_box((-x - 0.04, -y - 0.08, 0.1), (x + 0.04, -y - 0.02, h + m + s.between(0.05, 0.25)), 0.02),
            )


def draw_shelf(s: Sketch) -> None:
    """Draw a shelf: boards between uprights, open or with a back, often with books."""
    w, d, h = s.between(0.6, 1.3), s.between(0.25, 0.4), s.between(1.1, 2.1)
    boards, bays, t = s.count("shelves", 3, 6), s.count("bays", 1, 2 if w < 0.95 else 3), 0.022
    x, y = w / 2, d / 2
    style = s.choose("uprights", {"panels": 3, "posts": 1.2, "ladder-like": 0.8})
    levels = np.linspace(0.06, h - t, boards)
    lean = 0.55 if style == "ladder-like" else 0.0
    for z in levels:
        s.add("shelf", box((-x, -y * (1 + lean * (1 - z / h)), z), (x, y, z + t)))
    if style == "panels":
        s.add("upright", *(box((c - t / 2, -y, 0), (c + t / 2, y, h)) for c in np.linspace(-x, x, bays + 1)))
        if s.maybe("back", 0.6):
            s.add("back", box((-x, y - 0.01, 0.05), (x, y, h)))
    else:
        for a in (-1, 1):
            s.add("upright", cylinder((a * x, y - 0.015, 0), (a * x, y - 0.015, h), 0.016, n=8))
            s.add("upright", cylinder((a * x, -y * (1 + lean), 0), (a * x, -y, h), 0.016, n=8))
    if s.maybe("books", 0.6):
        gap = levels[1] - levels[0] - t
        for z in levels[:-1]:
            for k in range(bays):
                place = -x + k * w / bays + t
                end = place + (w / bays - 2 * t) * s.between(0.2, 1.0)
                while place < end - 0.05:
                    wide, tall = s.between(0.025, 0.06), gap * s.between(0.6, 0.92)
                    s.add("book", box((place, -y * s.between(0.5, 0.8), z + t), (place + wide, y - 0.02, z + t + tall)))
                    place += wide + 0.003


def draw_cabinet(s: Sketch) -> None:
    """Draw a cabinet, a closed box with doors or drawers: dresser, night stand, wardrobe."""
    kind = s.choose("kind", {"dresser": 3, "night stand": 1.5, "wardrobe": 1.5})
    least, most = {
        "dresser": ((0.8, 0.4, 0.7), (1.5, 0.5, 1.2)),
        "night stand": ((0.4, 0.35, 0.5), (0.55, 0.45, 0.7)),
        "wardrobe": ((0.9, 0.5, 1.8), (1.8, 0.62, 2.2)),
    }[kind]
    w, d, h = (s.between(a, b) for a, b in zip(least, most, strict=True))
    feet, x, y = s.between(0.03, 0.16), w / 2, d / 2
    s.add("body", box((-x, -y, feet), (x, y, h)))
    s.add("top", rounded_box((-x - 0.03, -y - 0.04, h), (x + 0.03, y, h + 0.035), 0.01))
    if s.maybe("plinth", 0.4):
        s.add("foot", box((-x + 0.03, -y + 0.03, 0), (x - 0.03, y - 0.03, feet)))
    else:
        s.add("foot", *four_legs("tapered" if s.chance(0.6) else "square", x, y, feet + 0.01, 0.06, 0.0))

    def knob(cx: float, cz: float, front: float, style: str) -> Mesh:
        if style == "knob":
            return ellipsoid((cx, front - 0.02, cz), (0.02, 0.024, 0.02), n=10, rings=6)
        return tube(
            [
                (cx - 0.05, front, cz),
                (cx - 0.05, front - 0.03, cz),
                (cx + 0.05, front - 0.03, cz),
                (cx + 0.05, front, cz),
            ],
            0.008,
            n=6,
        )

    handle = "knob" if s.chance(0.5) else "bar"
    front, floor = -y - 0.02, feet + 0.02
    doors = kind == "wardrobe" or s.chance(0.25)
    bottom = floor
    if not doors or s.chance(0.5):
        rows = s.count("drawer rows", 2, 5) if not doors else 1
        columns = 2 if w > 1.0 and s.chance(0.6) else 1
        ceiling = h - 0.02 if not doors else feet + h * 0.22
        high, wide = (ceiling - floor) / rows, (w - 0.03) / columns
        for k in range(rows):
            for c in range(columns):
                x0, z0 = -x + 0.015 + c * wide, floor + k * high
                panel = box((x0 + 0.012, front, z0 + 0.012), (x0 + wide - 0.012, -y, z0 + high - 0.012))
                s.add("drawer", panel)
                marks = (0.25, 0.75) if wide > 0.7 else (0.5,)
                s.add("handle", *(knob(x0 + wide * mark, z0 + high / 2, front, handle) for mark in marks))
        bottom = ceiling
    if doors:
        leaves = s.count("doors", 2, 3 if w > 1.3 else 2)
        wide = (w - 0.03) / leaves
        for c in range(leaves):
            x0 = -x + 0.015 + c * wide
            s.add("door", box((x0 + 0.008, front, bottom + 0.01), (x0 + wide - 0.008, -y, h - 0.02)))
            edge = x0 + (wide - 0.06 if c % 2 == 0 else 0.06)
            z = (bottom + h) / 2
            s.add("handle", cylinder((edge, front - 0.025, z - 0.09), (edge, front - 0.025, z + 0.09), 0.011, n=8))


CATEGORIES = (
    Category("table", ("top", "leg", "base", "apron", "shelf"), draw_table),
    Category("desk", ("top", "cabinet", "drawer", "side", "leg", "panel", "hutch"), draw_desk),
    Category(
        "bed",
        ("frame", "mattress", "pillow", "blanket", "leg", "post", "canopy", "ladder", "rail", "headboard", "footboard"),
        draw_bed,
    ),
    Category("shelf", ("shelf", "upright", "back", "book"), draw_shelf),
    Category("cabinet", ("body", "top", "foot", "drawer", "door", "handle"), draw_cabinet),
)
