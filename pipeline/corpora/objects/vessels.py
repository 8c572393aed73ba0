"""Things that hold something: mug, bottle, bowl, vase, teapot, bathtub, toilet."""

import numpy as np

from pipeline.corpora.objects.primitives import (
    Mesh,
    bend,
    box,
    cylinder,
    ellipsoid,
    join,
    loft,
    move,
    revolve,
    rounded_box,
    rounded_rectangle,
    torus,
    tube,
)
from pipeline.corpora.objects.sketch import Category, Sketch

__all__ = ["CATEGORIES"]


def _vessel(outer: np.ndarray, wall: float, floor: float) -> Mesh:
    """Build a hollow body from an outer profile (radius, z), from the foot to the rim.

    The inside is the same profile moved inwards by ``wall``, down to ``floor``.
    """
    inner = outer[outer[:, 1] > floor][::-1].copy()
    inner[:, 0] = np.maximum(inner[:, 0] - wall, 0.002)
    return revolve(np.concatenate([[(0, outer[0, 1])], outer, inner, [(0, inner[-1, 1])]]))


def _smooth(z: np.ndarray, knots: list[tuple[float, float]]) -> np.ndarray:
    """Interpolate radii at heights z, through knots (z, radius), monotone between knots."""
    kz, kr = np.array(knots).T
    k = np.clip(np.searchsorted(kz, z, side="right") - 1, 0, len(kz) - 2)
    t = np.clip((z - kz[k]) / (kz[k + 1] - kz[k]), 0, 1)
    t = t * t * (3 - 2 * t)
    return kr[k] * (1 - t) + kr[k + 1] * t


def draw_mug(s: Sketch) -> None:
    """Draw a mug: a cup with one handle at the right."""
    h, r = s.between(0.085, 0.13), s.between(0.036, 0.05)
    form = s.choose("body", {"straight": 3, "tapered": 1.5, "rounded": 2, "waisted": 1})
    z = np.linspace(0, h, 10)
    t = z / h
    ratio = {
        "straight": np.ones(10),
        "tapered": 0.72 + 0.28 * t,
        "rounded": 0.62 + 0.42 * np.sqrt(np.sin(np.clip(0.15 + t * 0.75, 0, 1) * np.pi / 1.6)),
        "waisted": 1 - 0.2 * np.sin(np.pi * t),
    }[form]
    radius = r * ratio
    s.add("body", _vessel(np.stack([radius, z], -1), s.between(0.003, 0.005), 0.008))
    low, high = h * s.between(0.14, 0.26), h * s.between(0.76, 0.9)
    out = r * s.between(0.6, 0.95)
    a, b = np.interp([low, high], z, radius) - 0.002
    thick = s.between(0.004, 0.007)
    style = s.choose("handle", {"round": 3, "square": 1, "ear": 1.5})
    if style == "round":
        angle = np.linspace(-np.pi / 2, np.pi / 2, 12)
        path = np.stack(
            [(a + b) / 2 + out * np.cos(angle), 0 * angle, (low + high) / 2 + (high - low) / 2 * np.sin(angle)], -1
        )
        path[0, 0], path[-1, 0] = a, b
    elif style == "square":
        path = np.array(
            [
                (a, 0, low),
                (a + out * 0.9, 0, low),
                (a + out, 0, low + 0.01),
                (b + out, 0, high - 0.01),
                (b + out * 0.9, 0, high),
                (b, 0, high),
            ]
        )
    else:
        path = np.concatenate(
            [
                bend((a, 0, low), (a + out * 0.5, 0, low), (b + out * 0.9, 0, high * 0.75), 6),
                bend((b + out, 0, high * 0.92), (b + out * 0.7, 0, high * 1.08), (b, 0, high), 6),
            ]
        )
    s.add("handle", tube(path, thick, flat=s.between(0.7, 1.6)))


def draw_bottle(s: Sketch) -> None:
    """Draw a bottle: a body, a shoulder, a neck and often a cap."""
    kind = s.choose("kind", {"wine": 2, "water": 2, "round": 1, "spray": 0.8, "square": 1})
    r, h = s.between(0.032, 0.045), s.between(0.2, 0.32)
    neck = r * s.between(0.28, 0.45)
    shoulder, start = h * s.between(0.5, 0.66), h * s.between(0.7, 0.8)
    z = np.linspace(0, h, 28)
    if kind == "round":
        radius = np.maximum(
            r * 1.5 * np.sqrt(np.clip(1 - ((z - h * 0.32) / (h * 0.36)) ** 2, 0, 1)),
            np.where(z > h * 0.5, neck, r * 0.7),
        )
    else:
        radius = _smooth(z, [(0, r * 0.94), (0.04 * h, r), (shoulder, r), (start, neck), (h, neck)])
    if kind == "water":
        radius = radius - (z < shoulder) * 0.06 * r * (1 + np.sin(z / h * 60)) * s.between(0.3, 1.0)
    if kind == "square":
        n = 6
        rings = np.empty((len(z), 4 * n, 3))
        for k, (height, width) in enumerate(zip(z, radius, strict=True)):
            rings[k, :, :2] = rounded_rectangle(
                2 * width, 2 * width * 0.7, width * (0.3 if height < shoulder else 0.69), n
            )
            rings[k, :, 2] = height
        s.add("body", loft(rings))
    else:
        s.add("body", revolve(np.concatenate([[(0, 0)], np.stack([radius, z], -1), [(0, h)]])))
    if kind == "wine":
        s.add("ring", torus((0, 0, h - 0.012), neck, 0.003, n=20, sides=8))
        if s.maybe("cork", 0.4):
            s.add("cap", cylinder((0, 0, h - 0.005), (0, 0, h + 0.02), neck * 0.85))
    elif kind == "spray":
        s.add(
            "cap",
            cylinder((0, 0, h), (0, 0, h + 0.02), neck * 1.4),
            rounded_box((-0.012, -0.045, h + 0.02), (0.012, 0.025, h + 0.045), 0.005),
        )
        s.add("trigger", tube([(0, -0.03, h + 0.022), (0, -0.034, h), (0, -0.05, h - 0.025)], 0.005, n=8))
    elif s.maybe("cap", 0.75):
        s.add("cap", cylinder((0, 0, h - 0.006), (0, 0, h + s.between(0.012, 0.03)), neck * s.between(1.1, 1.5), n=20))
    if s.maybe("label", 0.4) and kind in ("wine", "water"):
        low, high = h * s.between(0.12, 0.22), shoulder * s.between(0.8, 0.95)
        s.add("label", revolve([(r * 1.02, low), (r * 1.02, high)]))


def draw_bowl(s: Sketch) -> None:
    """Draw a bowl, open and wide, on a foot."""
    r, h = s.between(0.08, 0.14), s.between(0.04, 0.1)
    foot = r * s.between(0.3, 0.5)
    form = s.choose("body", {"round": 3, "flared": 2, "straight": 1})
    t = np.linspace(0, 1, 14)
    grow = (
        {"round": np.sin(t * np.pi / 2) ** 0.75, "flared": t**1.6, "straight": t}[form]
        if form != "flared"
        else 0.5 * t + 0.5 * t**3
    )
    profile = np.stack([foot + (r - foot) * grow, h * (0.08 + 0.92 * t)], -1)
    s.add("body", _vessel(profile, s.between(0.003, 0.006), h * 0.13))
    s.add(
        "foot", revolve([(foot * 0.85, 0.08 * h), (foot * 0.95, -0.04 * h), (foot * 1.05, -0.04 * h), (foot, 0.12 * h)])
    )
    if s.maybe("rim", 0.4):
        s.add("rim", torus((0, 0, h), r, 0.004, sides=8))
    if s.maybe("spoon", 0.2):
        s.add(
            "spoon",
            join(
                ellipsoid((r * 0.45, 0, h * 0.5), (0.022, 0.015, 0.006), n=12, rings=7),
                cylinder((r * 0.55, 0, h * 0.55), (r * 1.5, 0, h * 1.5), 0.004, n=8),
            ),
        )


def draw_vase(s: Sketch) -> None:
    """Draw a vase, tall, with a belly and a neck; at times with handles or flowers."""
    h = s.between(0.25, 0.45)
    belly, at = h * s.between(0.2, 0.36), h * s.between(0.25, 0.6)
    foot, neck = belly * s.between(0.4, 0.75), belly * s.between(0.25, 0.6)
    high = h * s.between(0.72, 0.88)
    lip = neck * s.between(1.05, 1.8)
    z = np.linspace(0, h, 26)
    radius = _smooth(z, [(0, foot), (at, belly), (max(high, at + 0.15 * h), neck), (h, lip)])
    body = _vessel(np.stack([radius, z], -1), 0.006, 0.012)
    if s.maybe("fluted", 0.25):
        angle = np.arctan2(body.vertices[:, 1], body.vertices[:, 0])
        body = Mesh(
            body.vertices * np.stack([1 + 0.05 * np.cos(9 * angle)] * 2 + [np.ones_like(angle)], -1), body.faces
        )
    s.add("body", body)
    s.add("foot", revolve([(0, -0.012), (foot * 1.12, -0.012), (foot * 1.12, 0), (foot, 0.006)]))
    if s.maybe("handles", 0.35):
        top = max(high, at + 0.15 * h)
        a, b = np.interp([at, top], z, radius)
        path = bend((a - 0.004, 0, at), (belly * 1.5, 0, top * 1.06), (b - 0.002, 0, top), 10)
        s.add_pair("handle", tube(path, 0.009, n=8))
    if s.maybe("flowers", 0.35):
        for _ in range(s.count("stems", 3, 6)):
            turn, lean, tall = s.between(0, 2 * np.pi), s.between(0.1, 0.5), h * s.between(1.3, 1.8)
            x, y = np.cos(turn) * lean * h * 0.7, np.sin(turn) * lean * h * 0.7
            s.add(
                "flower",
                join(
                    tube(bend((0, 0, h * 0.4), (0, 0, h), (x, y, tall)), 0.003, n=6),
                    ellipsoid((x, y, tall), (0.026, 0.026, 0.02), n=10, rings=6),
                ),
            )


def draw_teapot(s: Sketch) -> None:
    """Draw a teapot: a round body with a spout, a handle and a lid."""
    r, h = s.between(0.07, 0.09), s.between(0.09, 0.13)
    z = np.linspace(0, h, 16)
    t = z / h
    squat = s.choose("body", {"round": 3, "tall": 1.5, "flat": 1})
    radius = (
        r
        * {
            "round": 0.35 + 0.65 * np.sin(np.pi * (0.12 + 0.76 * t)),
            "tall": 1 - 0.4 * t,
            "flat": 0.45 + 0.55 * np.sin(np.pi * (0.06 + 0.84 * t)) ** 0.6,
        }[squat]
    )
    if squat == "tall":
        z, h = z * 1.5, h * 1.5
    s.add("body", revolve(np.concatenate([[(0, 0)], np.stack([radius, z], -1)])))
    rim = radius[-1]
    s.add(
        "lid",
        revolve([(rim * 1.05, h), (rim * 0.9, h + 0.012), (rim * 0.4, h + 0.024), (0, h + 0.026)]),
        ellipsoid((0, 0, h + 0.034), (0.012, 0.012, 0.011), n=12, rings=7),
    )
    side = float(np.interp(h * 0.3, z, radius))
    reach = r + s.between(0.045, 0.07)
    s.add(
        "spout",
        tube(
            bend(
                (-side * 0.85, 0, h * 0.3),
                (-reach * 0.95, 0, h * 0.3),
                (-reach - 0.015, 0, h * s.between(0.92, 1.08)),
                9,
            ),
            np.linspace(0.02, 0.0085, 9),
            n=12,
        ),
    )
    if s.choose("handle", {"side": 3, "top": 1}) == "side":
        low, high = np.interp([h * 0.25, h * 0.82], z, radius)
        s.add(
            "handle",
            tube(
                np.concatenate(
                    [
                        bend((low - 0.004, 0, h * 0.25), (reach, 0, h * 0.15), (reach, 0, h * 0.6), 7),
                        bend((reach, 0, h * 0.65), (reach, 0, h), (high - 0.004, 0, h * 0.82), 7),
                    ]
                ),
                0.0075,
                n=8,
            ),
        )
    else:
        angle = np.linspace(0, np.pi, 13)
        s.add(
            "handle",
            tube(np.stack([rim * 1.1 * np.cos(angle), 0 * angle, h * 0.93 + 0.085 * np.sin(angle)], -1), 0.006, n=8),
        )
    s.add("foot", torus((0, 0, 0.002), radius[0] * 0.9, 0.006, sides=8))


def _tub(s: Sketch, w: float, d: float, h: float, wall: float, depth: float, round_: float, taper: float) -> Mesh:
    """Build an open basin: outer wall up, over the rim and down to its floor."""
    rings = []
    for inset, z, shrink in (
        (0.0, 0.0, taper),
        (0.0, h * 0.5, (1 + taper) / 2),
        (0.0, h, 1.0),
        (wall, h, 1.0),
        (wall, h - depth * 0.6, (1 + taper) / 2),
        (wall * 1.8, h - depth, taper),
    ):
        outline = rounded_rectangle(w * shrink - 2 * inset, d * shrink - 2 * inset, round_ * shrink - inset * 0.5, 6)
        rings.append(np.concatenate([outline, np.full((len(outline), 1), z)], axis=1))
    return loft(np.stack(rings))


def draw_bathtub(s: Sketch) -> None:
    """Draw a bathtub, a basin for one person: built in or on claw feet, with a tap."""
    d, w, h = s.between(1.5, 1.8), s.between(0.68, 0.85), s.between(0.45, 0.62)
    style = s.choose("style", {"claw-foot": 2, "freestanding": 2, "built-in": 2})
    wall, depth = s.between(0.03, 0.07), h * s.between(0.75, 0.88)
    lift = 0.14 if style == "claw-foot" else 0.0
    if style == "built-in":
        s.add("basin", _tub(s, w, d, h, wall * 1.4, depth, 0.08, 0.99))
        rim = rounded_rectangle(w - wall, d - wall, 0.08, 4)
        s.add("rim", tube(np.concatenate([rim, np.full((len(rim), 1), h)], axis=1), wall * 0.7, n=8, closed=True))
    else:
        s.add("basin", move(_tub(s, w, d, h, wall * 0.6, depth, w * 0.49, s.between(0.68, 0.9)), (0, 0, lift)))
        rim = rounded_rectangle(w, d, w * 0.49, 8)
        s.add("rim", tube(np.concatenate([rim, np.full((len(rim), 1), h + lift)], axis=1), 0.02, n=8, closed=True))
    if style == "claw-foot":
        for x in (-1.0, 1.0):
            for y in (-1.0, 1.0):
                s.add(
                    "foot",
                    tube(
                        bend(
                            (x * w * 0.22, y * d * 0.3, lift + 0.1),
                            (x * w * 0.45, y * d * 0.36, lift),
                            (x * w * 0.36, y * d * 0.34, 0.02),
                        ),
                        np.linspace(0.035, 0.028, 8),
                        n=8,
                    ),
                    ellipsoid((x * w * 0.36, y * d * 0.34, 0.028), (0.04, 0.04, 0.028), n=10, rings=6),
                )
    y, z = d / 2 - 0.03, h + lift
    s.add("tap", tube(bend((0, y, z - 0.02), (0, y, z + s.between(0.2, 0.3)), (0, y - 0.18, z + 0.1), 9), 0.016, n=8))
    s.add(
        "tap",
        *(
            join(
                cylinder((x, y, z - 0.01), (x, y, z + 0.06), 0.012, n=8),
                ellipsoid((x, y, z + 0.07), (0.03, 0.03, 0.012), n=10, rings=5),
            )
            for x in (-0.1, 0.1)
        ),
    )
    if s.maybe("shower", 0.25):
        s.add(
            "shower",
            tube([(0, y + 0.02, z), (0, y + 0.02, z + 1.0), (0, y, z + 1.08), (0, y - 0.3, z + 1.1)], 0.013, n=8),
            cylinder((0, y - 0.3, z + 1.1), (0, y - 0.3, z + 1.05), 0.03, 0.09),
        )


def draw_toilet(s: Sketch) -> None:
    """Draw a toilet: a bowl with a seat and a lid, on a foot, and a tank behind it."""
    w, d, h = s.between(0.34, 0.4), s.between(0.44, 0.52), s.between(0.36, 0.42)
    n = 24
    angle = np.arange(n) * (2 * np.pi / n)
    egg = np.stack([w / 2 * np.cos(angle), np.where(np.sin(angle) < 0, 0.6, 0.4) * d * np.sin(angle)], -1)
    narrow = s.between(0.5, 0.75)
    steps = [
        (narrow, 0.0, 0.06),
        (narrow * 0.95, 0.05, 0.06),
        (narrow * 0.9, h * 0.35, 0.05),
        (0.82, h * 0.68, 0.02),
        (1.0, h, 0.0),
        (0.78, h, 0.0),
        (0.6, h * 0.7, 0.0),
        (0.2, h * 0.5, 0.0),
    ]
    s.add("bowl", loft(np.stack([np.concatenate([egg * a + (0, y), np.full((n, 1), z)], axis=1) for a, z, y in steps])))
    seat = [(1.04, h), (1.04, h + 0.025), (0.62, h + 0.025), (0.62, h)]
    s.add(
        "seat",
        loft(
            np.stack([np.concatenate([egg * a, np.full((n, 1), z)], axis=1) for a, z in seat]),
            caps=False,
            path_closed=True,
        ),
    )
    y = 0.4 * d
    if s.choose("lid", {"up": 3, "down": 1.5}) == "up":
        upright = egg[:, 1] + 0.6 * d
        lean = 0.12
        rings = [
            np.stack([egg[:, 0] * 1.04, y + lean * upright + k * 0.02, h + 0.03 + (d - upright)], -1) for k in (0, 1)
        ]
        s.add("lid", loft(np.stack(rings)))
    else:
        s.add(
            "lid",
            loft(
                np.stack(
                    [
                        np.concatenate([egg * a, np.full((n, 1), z)], axis=1)
                        for a, z in ((1.04, h + 0.028), (1.04, h + 0.045), (0.9, h + 0.052))
                    ]
                )
            ),
        )
    if s.maybe("tank", 0.88):
        tw, td, top = s.between(0.36, 0.46), s.between(0.16, 0.2), h + s.between(0.32, 0.42)
        s.add("tank", rounded_box((-tw / 2, y + 0.07, h - s.between(0.0, 0.1)), (tw / 2, y + 0.07 + td, top), 0.03))
        s.add(
            "tank lid",
            rounded_box((-tw / 2 - 0.012, y + 0.058, top), (tw / 2 + 0.012, y + 0.082 + td, top + 0.03), 0.012),
        )
        s.add(
            "flush",
            cylinder((-tw * 0.35, y + 0.07, top - 0.06), (-tw * 0.35, y + 0.03, top - 0.06), 0.012, n=8)
            if s.chance(0.5)
            else cylinder((0, y + 0.07 + td / 2, top + 0.03), (0, y + 0.07 + td / 2, top + 0.045), 0.025),
        )
    s.add("bowl", box((-w * 0.3, y - 0.05, 0), (w * 0.3, y + 0.2, h - 0.02), top=(1.15, 1.0)))


CATEGORIES = (
    Category("mug", ("body", "handle"), draw_mug),
    Category("bottle", ("body", "cap", "ring", "label", "trigger"), draw_bottle),
    Category("bowl", ("body", "foot", "rim", "spoon"), draw_bowl),
    Category("vase", ("body", "foot", "handle", "flower"), draw_vase),
    Category("teapot", ("body", "lid", "spout", "handle", "foot"), draw_teapot),
    Category("bathtub", ("basin", "rim", "foot", "tap", "shower"), draw_bathtub),
    Category("toilet", ("bowl", "seat", "lid", "tank", "tank lid", "flush"), draw_toilet),
)
