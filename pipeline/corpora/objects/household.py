"""Things about the house: lamp, umbrella, hammer, glasses, laptop, monitor, ladder."""

import numpy as np

from pipeline.corpora.objects.primitives import (
    Mesh,
    bend,
    box,
    circle,
    cylinder,
    ellipsoid,
    join,
    loft,
    move,
    revolve,
    rounded_box,
    rounded_rectangle,
    shifted,
    tube,
    turn,
)
from pipeline.corpora.objects.sketch import Category, Sketch

__all__ = ["CATEGORIES"]


def draw_lamp(s: Sketch) -> None:
    """Draw a floor lamp, a table lamp, a desk lamp with a jointed arm, or a hanging one."""
    kind = s.choose("kind", {"floor": 2, "table": 2, "desk": 2, "hanging": 1})
    if kind == "desk":
        r = s.between(0.08, 0.11)
        s.add("base", revolve([(0, 0), (r, 0), (r, 0.015), (r * 0.8, 0.025), (0, 0.03)]))
        elbow = np.array([0, s.between(0.05, 0.14), s.between(0.2, 0.28)])
        head = shifted(elbow, 0, -s.between(0.18, 0.28), s.between(0.06, 0.16))
        s.add("arm", cylinder((0, 0, 0.02), elbow, 0.009, n=8), cylinder(elbow, head, 0.009, n=8))
        s.add("joint", ellipsoid(elbow, (0.016, 0.016, 0.016), n=10, rings=6))
        cone = revolve([(0.02, 0.05), (0.03, 0.045), (s.between(0.055, 0.075), -0.06)])
        s.add(
            "shade",
            move(turn(cone, "x", -s.between(0.2, 0.7)), head),
            ellipsoid(shifted(head, 0, 0, -0.03), (0.022, 0.022, 0.028), n=10, rings=6),
        )
        return
    if kind == "hanging":
        drop, r = s.between(0.5, 0.9), s.between(0.12, 0.22)
        s.add("base", cylinder((0, 0, drop), (0, 0, drop + 0.02), 0.06))
        s.add("cord", cylinder((0, 0, 0.18), (0, 0, drop), 0.006, n=6))
        form = s.choose("shade", {"dome": 2, "cone": 2, "globe": 1})
        if form == "globe":
            s.add("shade", ellipsoid((0, 0, 0.1), (r * 0.8, r * 0.8, r * 0.8)))
        else:
            t = np.linspace(0, np.pi / 2, 9)
            profile = (
                np.stack([r * np.sin(t), 0.2 * np.cos(t)], -1)
                if form == "dome"
                else np.array([(0.02, 0.2), (0.03, 0.18), (r, 0.0)])
            )
            s.add("shade", revolve(profile))
            s.add("bulb", ellipsoid((0, 0, 0.05), (0.03, 0.03, 0.04), n=12, rings=7))
        return
    tall = kind == "floor"
    h = s.between(1.3, 1.7) if tall else s.between(0.35, 0.55)
    r = h * (s.between(0.09, 0.13) if tall else s.between(0.2, 0.3))
    foot = r * s.between(0.6, 0.95)
    stand = s.choose("stand", {"pole": 3, "tripod": 1.2 if tall else 0.3, "turned": 0 if tall else 3})
    shade = h * (s.between(0.16, 0.22) if tall else s.between(0.35, 0.45))
    low = h - shade
    if stand == "tripod":
        s.add("leg", *(cylinder((x * r * 1.2, y * r * 1.2, 0), (0, 0, low), 0.014, n=8) for x, y in circle(3)))
    else:
        s.add("base", revolve([(0, 0), (foot, 0), (foot, 0.02), (foot * 0.5, 0.03), (0.0, 0.035)]))
        if stand == "pole":
            s.add("pole", cylinder((0, 0, 0.02), (0, 0, low + shade * 0.3), 0.012))
        else:
            t = np.linspace(0, 1, 16)
            belly = foot * (0.25 + s.between(0.3, 0.6) * np.sin(np.pi * t ** s.between(0.6, 1.3)) ** 2)
            s.add(
                "pole",
                revolve(np.stack([belly, 0.03 + t * (low - 0.03)], -1)),
                cylinder((0, 0, low), (0, 0, low + shade * 0.4), 0.01),
            )
    top = r * (s.between(0.9, 1.0) if s.choose("shade", {"drum": 1, "cone": 1.5}) == "drum" else s.between(0.4, 0.7))
    s.add("shade", revolve([(r, low), (top, h)]))
    s.add("shade", revolve([(r * 0.985, low), (top * 0.985, h)]))


def draw_umbrella(s: Sketch) -> None:
    """Draw an umbrella, open on a shaft with a hooked handle or folded, or a parasol on a foot."""
    r, n = s.between(0.48, 0.62), s.count("ribs", 6, 10)
    kind = s.choose("kind", {"open": 3, "parasol": 1.2, "folded": 1})
    h = s.between(0.85, 1.0) if kind != "parasol" else s.between(1.1, 1.35)
    rise = s.between(0.2, 0.34) if kind == "open" else s.between(0.12, 0.22)
    s.add("shaft", cylinder((0, 0, 0.0), (0, 0, h + 0.02), 0.011 if kind != "parasol" else 0.02))
    s.add("tip", cylinder((0, 0, h), (0, 0, h + 0.07), 0.012, 0.004, n=8))
    if kind == "folded":
        t = np.linspace(0, 1, 14)
        angle = np.arange(4 * n) * (2 * np.pi / (4 * n))
        wave = 1 + 0.28 * np.cos(n * angle)
        radius = 0.012 + 0.045 * np.sin(np.pi * t**0.6) ** 1.0 * (1 - 0.3 * t)
        ring = np.stack([np.cos(angle) * wave, np.sin(angle) * wave], -1)
        stack = np.concatenate(
            [radius[:, None, None] * ring, np.broadcast_to((h - 0.66 * t)[:, None, None], (14, 4 * n, 1))], axis=2
        )
        s.add("canopy", loft(stack))
    else:
        steps = np.linspace(0.02, 1, 9)
        k = 4
        angle = np.arange(k * n) * (2 * np.pi / (k * n))
        sag = 1 - 0.07 * (1 - np.abs(np.cos(n * angle / 2)))  # between two ribs the cloth hangs in
        curve = rise * (1 - steps**2)
        stack = np.empty((9, k * n, 3))
        stack[:, :, 0] = r * steps[:, None] * np.cos(angle) * sag
        stack[:, :, 1] = r * steps[:, None] * np.sin(angle) * sag
        stack[:, :, 2] = h - rise + curve[:, None]
        s.add("canopy", loft(stack, caps=False))
        mid = stack[4, ::k]
        s.add("rib", *(cylinder((0, 0, h - rise * 1.15), point, 0.005, n=6) for point in mid))
    if kind == "parasol":
        s.add("foot", revolve([(0, -0.04), (0.22, -0.04), (0.22, 0), (0.05, 0.03), (0.03, 0.1), (0, 0.1)]))
    elif s.choose("handle", {"hook": 3, "knob": 1}) == "hook":
        angle = np.linspace(0, -np.pi * 1.05, 12)
        hook = np.stack([0.05 - 0.05 * np.cos(angle), 0 * angle, 0.05 * np.sin(angle)], -1)
        s.add("handle", tube(np.concatenate([[(0, 0, 0.1)], hook]), 0.016, n=8))
    else:
        s.add(
            "handle",
            cylinder((0, 0, 0), (0, 0, 0.12), 0.02),
            ellipsoid((0, 0, -0.01), (0.026, 0.026, 0.024), n=12, rings=7),
        )


def draw_hammer(s: Sketch) -> None:
    """Draw an upright hammer, its face to the right: claw, sledge, mallet or ball peen."""
    kind = s.choose("kind", {"claw": 3, "sledge": 1, "mallet": 1, "ball peen": 1.2})
    h, grip = s.between(0.27, 0.36), s.between(0.011, 0.016)
    t = np.linspace(0, 1, 12)
    swell = grip * (1 + 0.28 * np.cos(t * 7) * (1 - t))
    s.add("handle", tube(np.stack([0 * t, 0 * t, t * h], -1), swell, n=12, flat=s.between(0.7, 1.0)))
    if s.maybe("rubber grip", 0.5):
        s.add("grip", cylinder((0, 0, 0.005), (0, 0, h * s.between(0.3, 0.42)), grip * 1.5, grip * 1.25))
    z = h - 0.012
    if kind == "mallet":
        r, half = s.between(0.03, 0.045), s.between(0.05, 0.075)
        s.add("head", cylinder((-half, 0, z), (half, 0, z), r, n=20))
    elif kind == "sledge":
        r, half = s.between(0.022, 0.032), s.between(0.06, 0.08)
        s.add("head", rounded_box((-half, -r, z - r), (half, r, z + r), 0.008))
    else:
        r = s.between(0.012, 0.017)
        s.add(
            "head",
            box((-0.022, -r, z - 0.015), (0.022, r, z + 0.016)),
            cylinder((0.02, 0, z), (0.05, 0, z), r * 0.8),
            cylinder((0.045, 0, z), (0.068, 0, z), r * 1.25, n=18),
        )
        if kind == "claw":
            length, drop = s.between(0.06, 0.085), s.between(0.02, 0.045)
            for side in (-1, 1):
                path = bend(
                    (-0.018, side * 0.005, z + 0.004),
                    (-length * 0.6, side * 0.009, z + 0.008),
                    (-length, side * 0.014, z - drop),
                    8,
                )
                s.add("claw", tube(path, np.linspace(0.0095, 0.003, 8), n=8))
        else:
            s.add(
                "head",
                cylinder((-0.02, 0, z), (-0.04, 0, z), r * 0.7),
                ellipsoid((-0.052, 0, z), (0.018, 0.016, 0.016), n=14, rings=9),
            )


def draw_glasses(s: Sketch) -> None:
    """Draw glasses: two lenses in frames, a bridge, and temples that run back to the ears."""
    form = s.choose("frame", {"round": 2, "rectangular": 2, "oval": 1, "aviator": 1})
    half, bridge = s.between(0.021, 0.027), s.between(0.007, 0.011)
    tall = half * {"round": 1.0, "rectangular": s.between(0.5, 0.75), "oval": 0.72, "aviator": 0.9}[form]
    n = 28
    unit = circle(n)
    if form == "rectangular":
        outline = rounded_rectangle(2 * half, 2 * tall, 0.3 * tall, 7)
    elif form == "aviator":
        outline = unit * (half, tall)
        outline = outline * np.stack([1 + 0.22 * outline[:, 1] / tall, np.where(outline[:, 1] < 0, 1.15, 0.85)], -1)
    else:
        outline = unit * (half, tall)
    cx = half + bridge
    rim = s.between(0.0012, 0.0032)
    wrap = s.between(0.0, 0.15)  # the frame bends around the face
    path = np.stack([outline[:, 0] + cx, wrap * np.maximum(outline[:, 0], 0), outline[:, 1]], -1)
    s.add_pair("rim", tube(path, rim, n=8, closed=True))
    lens = np.stack([path, path * [1, 1, 1] + [0, 0.0012, 0]])
    s.add_pair("lens", loft(lens))
    s.add(
        "bridge",
        tube(bend((-bridge, 0, tall * 0.25), (0, -0.003, tall * 0.75), (bridge, 0, tall * 0.25)), rim * 1.1, n=8),
    )
    if form == "aviator":
        s.add("bridge", cylinder((-bridge * 1.5, 0, tall * 0.8), (bridge * 1.5, 0, tall * 0.8), rim, n=8))
    edge, length = cx + half, s.between(0.115, 0.135)
    y0 = wrap * half
    open_ = s.between(-0.004, 0.006)
    z = tall * 0.45
    outer = edge + 0.003
    straight = [(edge - 0.001, y0, z), (outer, y0 + 0.004, z), (outer + open_ * 0.5, length * 0.7, z)]
    hook = bend(
        (outer + open_ * 0.8, length * 0.8, z),
        (edge + open_, length * 0.95, z),
        (edge + open_, length * 1.12, -0.024),
        5,
    )
    arm = np.concatenate([straight, hook])
    s.add_pair("temple", tube(arm, rim * s.between(1.0, 1.5), n=8))
    if s.maybe("nose pads", 0.4):
        s.add_pair("nose pad", ellipsoid((bridge * 0.9, 0.006, -tall * 0.15), (0.0018, 0.003, 0.005), n=8, rings=6))


def draw_laptop(s: Sketch) -> None:
    """Draw a laptop: a keyboard half and a screen half, joined at a hinge and more or less open."""
    w, d, t = s.between(0.3, 0.38), s.between(0.2, 0.26), s.between(0.01, 0.024)
    x, y = w / 2, d / 2
    s.add("base", rounded_box((-x, -y, 0), (x, y, t), 0.004))
    s.add("keyboard", _keys(x * 0.88, -y * 0.12, y * 0.82, t, 4, s.count("key columns", 9, 12), 0.004))
    s.add("touchpad", box((-x * 0.28, -y * 0.86, t), (x * 0.28, -y * 0.28, t + 0.0015)))
    opening = s.between(95, 130)
    s.facts["opening"] = f"{round(opening / 5) * 5} degrees"
    thin = t * s.between(0.4, 0.7)
    lid = rounded_box((-x, -2 * y, 0), (x, 0, thin), 0.003)
    frame = 0.012
    screen = box((-x + frame, -2 * y + frame, -0.0015), (x - frame, -frame * 1.5, 0))
    for part, mesh in (("lid", lid), ("screen", screen)):
        s.add(part, move(turn(mesh, "x", -np.radians(opening)), (0, y, t)))
    s.add("hinge", *(cylinder((a * x * 0.7 - 0.02, y, t), (a * x * 0.7 + 0.02, y, t), 0.006, n=8) for a in (-1, 1)))


def _keys(x: float, y0: float, y1: float, z: float, rows: int, columns: int, high: float) -> Mesh:
    """Build a field of keys."""
    wide, deep = 2 * x / columns, (y1 - y0) / rows
    return join(
        *(
            box(
                (-x + c * wide + 0.1 * wide, y0 + r * deep + 0.1 * deep, z),
                (-x + (c + 1) * wide - 0.1 * wide, y0 + (r + 1) * deep - 0.1 * deep, z + high),
            )
            for r in range(rows)
            for c in range(columns)
        )
    )


def draw_monitor(s: Sketch) -> None:
    """Draw a monitor: a flat screen on a stand, a curved one, or an old deep tube."""
    kind = s.choose("kind", {"flat": 4, "curved": 1.2, "tube": 1.2})
    w = s.between(0.45, 0.8)
    h = w / s.between(1.3, 1.9)
    lift = s.between(0.08, 0.18)
    x = w / 2
    if kind == "tube":
        w, h = 0.42, s.between(0.32, 0.38)
        x, deep = w / 2, s.between(0.28, 0.4)
        frame = rounded_box((-x, 0, 0.05), (x, 0.1, 0.05 + h), 0.015)
        s.add("frame", frame)
        s.add("screen", rounded_box((-x + 0.03, -0.008, 0.09), (x - 0.03, 0.01, 0.02 + h), 0.006))
        rings = [
            np.stack([o[:, 0], np.full(len(o), level), o[:, 1] + 0.05 + h / 2], -1)
            for o, level in (
                (rounded_rectangle(w * a, h * a, 0.04, 4), y)
                for a, y in ((0.95, 0.1), (0.8, 0.1 + deep * 0.5), (0.5, 0.1 + deep))
            )
        ]
        s.add("back", loft(np.stack(rings)))
        s.add(
            "stand", revolve([(0, 0), (0.13, 0), (0.12, 0.02), (0.06, 0.03), (0.06, 0.06), (0, 0.06)], at=(0, 0.15, 0))
        )
        return
    t = s.between(0.018, 0.05)
    bow = s.between(0.12, 0.25) if kind == "curved" else 0.0
    u = np.linspace(-1, 1, 13)

    def sheet(margin: float, y0: float, y1: float) -> Mesh:
        a = u * (x - margin)
        y = -bow * w * 0.5 * (u**2 if bow else 0 * u)
        low, high = lift + margin, lift + h - margin
        ring = np.stack(
            [np.stack([a, y + dy, np.full(13, z)], -1) for dy, z in ((y0, low), (y1, low), (y1, high), (y0, high))],
            axis=1,
        )
        return loft(ring)

    s.add("frame", sheet(0.0, 0.0, t))
    s.add("screen", sheet(s.between(0.008, 0.025), -0.004, 0.0))
    style = s.choose("stand", {"round": 2, "plate": 2, "legs": 1.2, "V": 1})
    z = lift + h * 0.35
    if style == "legs":
        s.add(
            "stand",
            *(
                join(
                    cylinder((a * x * 0.65, -0.1, 0.006), (a * x * 0.65, 0.04, lift), 0.008),
                    cylinder((a * x * 0.65, 0.12, 0.006), (a * x * 0.65, 0.03, lift), 0.008),
                )
                for a in (-1, 1)
            ),
        )
        return
    s.add(
        "neck",
        box((-0.03, t, 0.01), (0.03, t + 0.03, z))
        if s.chance(0.6)
        else cylinder((0, t + 0.02, 0), (0, t + 0.02, z), 0.022),
    )
    if style == "round":
        s.add("stand", revolve([(0, 0), (w * 0.22, 0), (w * 0.22, 0.012), (0, 0.018)], at=(0, t * 0.5, 0)))
    elif style == "plate":
        s.add("stand", rounded_box((-w * 0.22, -0.09, 0), (w * 0.22, 0.11, 0.012), 0.005))
    else:
        s.add("stand", *(cylinder((0, t + 0.02, 0.012), (a * w * 0.28, -0.12, 0.01), 0.012) for a in (-1, 1)))


def draw_ladder(s: Sketch) -> None:
    """Draw a ladder, two rails and rungs: straight, or a step ladder with two sides."""
    n = s.count("rungs", 4, 9)
    h, w = 0.28 * n + s.between(0.15, 0.4), s.between(0.34, 0.5)
    kind = s.choose("kind", {"straight": 1, "step": 1.5})
    rail = s.between(0.016, 0.03)
    lean = s.between(0.12, 0.25)
    flare = s.between(0.0, 0.18)

    def at(side: float, z: float, direction: float) -> tuple[float, float, float]:
        return (side * w / 2 * (1 + flare * (1 - z / h)), direction * lean * (h - z), z)

    levels = np.linspace(0.25, h - (0.12 if kind == "straight" else 0.25), n)
    front = -1.0
    s.add("rail", *(cylinder(at(a, 0, front), at(a, h, front), rail) for a in (-1, 1)))
    if kind == "step" or s.chance(0.3):
        for z in levels:
            (x, y, _), deep = at(1, z, front), 0.05
            s.add("rung", box((-x, y - deep, z - 0.012), (x, y + deep, z + 0.012)))
    else:
        s.add("rung", *(cylinder(at(-1, z, front), at(1, z, front), rail * 0.75, n=10) for z in levels))
    if kind == "step":
        s.add("support", *(cylinder(at(a * 0.95, 0, 1.0), at(a * 0.95, h, 1.0), rail * 0.8) for a in (-1, 1)))
        s.add("support", *(cylinder(at(-0.95, z, 1.0), at(0.95, z, 1.0), rail * 0.5, n=8) for z in (h * 0.2, h * 0.55)))
        s.add("top", rounded_box((-w / 2 - 0.03, -0.1, h - 0.02), (w / 2 + 0.03, 0.1, h + 0.02), 0.01))


CATEGORIES = (
    Category("lamp", ("shade", "base", "pole", "leg", "arm", "joint", "cord", "bulb"), draw_lamp),
    Category("umbrella", ("canopy", "shaft", "tip", "rib", "handle", "foot"), draw_umbrella),
    Category("hammer", ("head", "handle", "grip", "claw"), draw_hammer),
    Category("glasses", ("rim", "lens", "bridge", "temple", "nose pad"), draw_glasses),
    Category("laptop", ("base", "keyboard", "touchpad", "lid", "screen", "hinge"), draw_laptop),
    Category("monitor", ("screen", "frame", "back", "neck", "stand"), draw_monitor),
    Category("ladder", ("rail", "rung", "support", "top"), draw_ladder),
)
