"""Musical instruments: piano, guitar."""

import numpy as np

from pipeline.corpora.objects.primitives import (
    box,
    cylinder,
    ellipsoid,
    join,
    loft,
    polygon_prism,
    rounded_box,
    torus,
    turn,
)
from pipeline.corpora.objects.sketch import Category, Sketch

__all__ = ["CATEGORIES"]


def draw_piano(s: Sketch) -> None:
    """Draw a grand piano with its wing-shaped body and open lid, or an upright one."""
    keys = 14
    if s.choose("kind", {"grand": 3, "upright": 2}) == "grand":
        w, d, z, t = 1.48, s.between(1.4, 2.2), s.between(0.62, 0.7), s.between(0.26, 0.34)
        x = w / 2
        back = np.linspace(0, 1, 14)
        bent = x - (w * 0.62) * (3 * back**2 - 2 * back**3)  # the bent side, from the right front to the narrow tail
        side = np.stack([bent, -d / 2 + 0.25 + back * (d * 0.97 - 0.25)], -1)
        tail = [(-x * 0.55, d / 2), (-x, d / 2 - 0.15)]
        outline = np.array([(-x, -d / 2 + 0.25), (x, -d / 2 + 0.25), *side[1:], *tail])
        s.add("body", polygon_prism(outline, z, z + t))
        s.add("keyboard", box((-x + 0.12, -d / 2 - 0.02, z + 0.08), (x - 0.12, -d / 2 + 0.25, z + 0.14)))
        s.add(
            "body",
            box((-x, -d / 2 - 0.03, z), (x, -d / 2 + 0.25, z + 0.08)),
            box((-x, -d / 2 - 0.03, z + 0.08), (-x + 0.1, -d / 2 + 0.25, z + 0.2)),
        )
        s.add("body", box((x - 0.1, -d / 2 - 0.03, z + 0.08), (x, -d / 2 + 0.25, z + 0.2)))
        if s.maybe("lid open", 0.7):
            lid = polygon_prism(outline * 1.01, z + t, z + t + 0.025)
            s.add("lid", turn(lid, "y", -s.between(0.35, 0.65), about=(-x, 0, z + t)))
            s.add("lid prop", cylinder((x * 0.75, -d * 0.2, z + t), (x * 0.6, -d * 0.2, z + t + w * 0.42), 0.014, n=8))
        s.add(
            "leg",
            *(
                cylinder((a, b, 0), (a, b, z + 0.01), 0.045, 0.07, n=12)
                for a, b in ((-x + 0.12, -d / 2 + 0.15), (x - 0.12, -d / 2 + 0.15), (-x * 0.5, d / 2 - 0.35))
            ),
        )
        s.add(
            "pedals",
            join(
                cylinder((0, -d * 0.3, 0.1), (0, -d * 0.3, z), 0.03, n=8),
                box((-0.12, -d * 0.3 - 0.05, 0.06), (0.12, -d * 0.3 + 0.05, 0.12)),
            ),
        )
        seat_y = -d / 2 - 0.45
    else:
        w, d, h = s.between(1.35, 1.55), s.between(0.3, 0.4), s.between(1.05, 1.35)
        x, z = w / 2, s.between(0.6, 0.68)
        s.add("body", box((-x, 0, 0.06), (x, d, h)), box((-x, -0.3, z), (x, 0, z + 0.07)))
        s.add("lid", box((-x - 0.03, -0.03, h), (x + 0.03, d + 0.02, h + 0.03)))
        s.add(
            "body",
            *(box((a * x - 0.05 * (a > 0), -0.3, z + 0.07), (a * x + 0.05 * (a < 0), 0, z + 0.2)) for a in (-1, 1)),
        )
        s.add("keyboard", box((-x + 0.06, -0.28, z + 0.07), (x - 0.06, -0.02, z + 0.1)))
        s.add("stand", box((-x * 0.5, -0.04, z + 0.25), (x * 0.5, -0.01, z + 0.42)))
        s.add("leg", *(box((a * (x - 0.06) - 0.04, -0.28, 0), (a * (x - 0.06) + 0.04, -0.2, z)) for a in (-1, 1)))
        s.add("leg", *(box((a * (x - 0.06) - 0.05, -0.3, 0), (a * (x - 0.06) + 0.05, d, 0.06)) for a in (-1, 1)))
        s.add("pedals", box((-0.12, -0.1, 0.07), (0.12, 0, 0.11)))
        seat_y = -0.6
        d = 0.0
    black = [c for c in range(keys - 1) if c % 7 not in (2, 6)]
    step = (2 * x - 0.3) / keys
    level, front = (z + 0.14, -d / 2 + 0.06) if d else (z + 0.1, -0.16)
    s.add(
        "keyboard",
        join(
            *(
                box(
                    (-x + 0.15 + (c + 0.7) * step, front, level),
                    (-x + 0.15 + (c + 1.25) * step, front + 0.14, level + 0.02),
                )
                for c in black
            )
        ),
    )
    if s.maybe("stool", 0.5):
        s.add("stool", rounded_box((-0.32, seat_y - 0.16, 0.44), (0.32, seat_y + 0.16, 0.52), 0.03))
        s.add(
            "stool",
            *(
                box((a * 0.28 - 0.02, seat_y + b * 0.13 - 0.02, 0), (a * 0.28 + 0.02, seat_y + b * 0.13 + 0.02, 0.45))
                for a in (-1, 1)
                for b in (-1, 1)
            ),
        )


def draw_guitar(s: Sketch) -> None:
    """Draw an upright guitar: a waisted body (or an electric one with horns), a neck and a headstock with pegs."""
    kind = s.choose("kind", {"acoustic": 3, "electric": 2, "ukulele": 1})
    length, w = s.between(0.46, 0.52), s.between(0.34, 0.4)
    deep = s.between(0.09, 0.12) if kind != "electric" else s.between(0.035, 0.05)
    neck = s.between(0.42, 0.5)
    if kind == "ukulele":
        length, w, neck, deep = length * 0.62, w * 0.6, neck * 0.62, deep * 0.7
    n = 26
    t = np.linspace(0, 1, n)
    upper, waist = s.between(0.7, 0.82), s.between(0.56, 0.68)
    # Half width from the bottom to the shoulder: lower bout, waist, upper bout.
    knots = np.array(
        [
            (0, 0.0),
            (0.03, 0.45),
            (0.1, 0.75),
            (0.24, 1.0),
            (0.4, 0.9),
            (0.58, waist),
            (0.72, upper * 0.96),
            (0.82, upper),
            (0.92, upper * 0.82),
            (0.985, upper * 0.4),
            (1, 0.0),
        ]
    )
    half = np.interp(t, knots[:, 0], knots[:, 1]) * w / 2
    right, left = half.copy(), half.copy()
    if kind == "electric":
        right *= np.where(t > 0.78, 0.75, 1)
    elif s.maybe("cutaway", 0.25):
        right *= np.where(t > 0.75, 0.45, 1)
    # Strips across, not a fan: an outline with a waist is not star-shaped.
    z = t * length
    front = np.stack([np.stack([-left, 0 * z - deep / 2, z], -1), np.stack([right, 0 * z - deep / 2, z], -1)], axis=1)
    rings = np.concatenate([front, front[:, ::-1] + (0, deep, 0)], axis=1)  # [n, 4, 3]
    s.add("body", loft(rings))
    if kind == "electric":
        for side, long in ((-1, s.between(0.08, 0.13)), (1, s.between(0.05, 0.1))):
            y = deep / 2
            steps = [(0.12, 0.38, length * 0.8), (0.2, 0.4, length * 0.95), (0.27, 0.36, length * 0.95 + long)]
            horn = [
                [(x, at, level) for x, at in ((a, -y), (b, -y), (b, y), (a, y))]
                for a, b, level in ((side * w * a, side * w * b, level) for a, b, level in steps)
            ]
            s.add("body", loft(np.array(horn)))
        s.add(
            "pickup",
            *(
                box((-0.04, -deep / 2 - 0.008, length * a), (0.04, -deep / 2, length * a + 0.022))
                for a in (0.36, 0.52, 0.68)[: s.count("pickups", 2, 3)]
            ),
        )
    else:
        hole = torus((0, -deep / 2, length * 0.66), w * 0.12, 0.006, axis="y", sides=6)
        s.add("sound hole", hole)
    y = -deep / 2
    s.add("bridge", box((-w * 0.2, y - 0.012, length * 0.27), (w * 0.2, y, length * 0.31)))
    thick, top = (0.024 if kind != "ukulele" else 0.018), length + neck
    s.add("neck", box((-thick, y - 0.008, length * 0.74), (thick, y + 0.016, top), top=(0.85, 1)))
    head = neck * 0.32
    s.add(
        "headstock",
        loft(
            np.array(
                [
                    [(a * x, y + b, z) for a, b in ((-1, -0.004), (1, -0.004), (1, 0.012), (-1, 0.012))]
                    for x, z in ((thick, top), (thick * 1.7, top + head * 0.25), (thick * 1.4, top + head))
                ]
            )
        ),
    )
    pegs = 2 if kind == "ukulele" else 3
    for peg_height in np.linspace(top + head * 0.25, top + head * 0.85, pegs).tolist():
        s.add_pair(
            "peg",
            join(
                cylinder((thick, y + 0.004, peg_height), (thick * 2.2, y + 0.004, peg_height), 0.004, n=6),
                ellipsoid((thick * 2.4, y + 0.004, peg_height), (0.011, 0.006, 0.008), n=8, rings=5),
            ),
        )
    if s.maybe("strings", 0.7):
        strings = [
            cylinder((x, y - 0.014, length * 0.29), (x * 0.8, y - 0.012, top), 0.0016, n=4, caps=False)
            for x in np.linspace(-0.016, 0.016, 4)
        ]
        s.add("string", *strings)


CATEGORIES = (
    Category("piano", ("body", "keyboard", "lid", "lid prop", "leg", "pedals", "stand", "stool"), draw_piano),
    Category("guitar", ("body", "neck", "headstock", "peg", "bridge", "sound hole", "pickup", "string"), draw_guitar),
)
