"""Things to sit on: chair, stool, bench, sofa."""

import numpy as np

from pipeline.corpora.objects.primitives import (
    bend,
    box,
    circle,
    cylinder,
    join,
    pillow,
    revolve,
    rounded_box,
    torus,
    tube,
    turn,
)
from pipeline.corpora.objects.sketch import Category, Sketch
from pipeline.corpora.objects.supports import four_legs, star_base

__all__ = ["CATEGORIES"]


def draw_chair(s: Sketch) -> None:
    """Draw a chair: seat, back, a base of legs or a star, perhaps armrests."""
    w, d = s.between(0.38, 0.52), s.between(0.38, 0.5)
    h, t = s.between(0.38, 0.5), s.between(0.025, 0.07)
    back_h = s.between(0.32, 0.65)
    lean = s.between(0.0, 0.28)
    base = s.choose("base", {"legs": 6, "star": 2, "cantilever": 1, "pedestal": 1})
    seat = s.choose("seat", {"square": 5, "round": 1.5, "cushion": 3})
    back = s.choose("back", {"solid": 3, "slatted": 3, "round": 1.5, "ladder": 2.5})
    arms = s.maybe("armrests", 0.4)

    if seat == "round":
        s.add("seat", revolve([(0, h - t), (w / 2, h - t), (w / 2, h), (0, h)], n=28))
    elif seat == "cushion":
        s.add("seat", pillow((-w / 2, -d / 2, h - 1.6 * t), (w / 2, d / 2, h + 0.6 * t), 6.0))
    else:
        s.add("seat", rounded_box((-w / 2, -d / 2, h - t), (w / 2, d / 2, h), 0.3 * t))

    top = h + back_h
    y0 = d / 2 - 0.03
    thick = s.between(0.02, 0.05)

    def on_back(x: float, z: float) -> tuple[float, float, float]:
        return (x, y0 + lean * (z - h), z)

    if back == "solid":
        panel = rounded_box((-w / 2, y0 - thick, h + s.between(-0.02, 0.12)), (w / 2, y0, top), 0.4 * thick)
        s.add("back", turn(panel, "x", -np.arctan(lean), about=(0, y0, h)))
    elif back == "round":
        plate = cylinder((0, y0 - thick, h + back_h * 0.55), (0, y0, h + back_h * 0.55), min(w, back_h) * 0.48, n=24)
        posts = [
            cylinder((x, y0 - thick / 2, h - t), (x, y0 - thick / 2, h + back_h * 0.4), 0.014)
            for x in (-w * 0.2, w * 0.2)
        ]
        s.add("back", turn(join(plate, *posts), "x", -np.arctan(lean), about=(0, y0, h)))
    else:
        post = s.between(0.014, 0.024)
        posts = [cylinder(on_back(x, h - t), on_back(x, top), post) for x in (-w / 2 + post, w / 2 - post)]
        if back == "slatted":
            bars = s.count("slats", 3, 7)
            slats = [
                cylinder(on_back(x, h), on_back(x, top - 0.03), post * 0.6, n=8)
                for x in np.linspace(-w / 2, w / 2, bars + 2)[1:-1]
            ]
            slats.append(tube([on_back(-w / 2, top - 0.02), on_back(w / 2, top - 0.02)], post * 1.5, n=10))
        else:
            bars = s.count("slats", 2, 5)
            width = 0.35 * back_h / bars
            slats = [
                turn(
                    box((-w / 2, y0 - 0.012, z - width), (w / 2, y0 + 0.012, z + width)),
                    "x",
                    -np.arctan(lean),
                    about=(0, y0, h),
                )
                for z in np.linspace(h + back_h * 0.25, top - width, bars)
            ]
        s.add("back", join(*posts, *slats))

    leg_h = h - 0.5 * t
    if base == "legs":
        style = s.choose("leg style", {"square": 3, "round": 2, "tapered": 3, "turned": 1})
        splay = 0.0 if style in ("square", "turned") else s.between(0.0, 0.08)
        squeeze = 0.72 if seat == "round" else 1.0
        legs = four_legs(style, w / 2 * squeeze, d / 2 * squeeze, leg_h, s.between(0.03, 0.05), splay)
        s.add("leg", *legs)
        if s.maybe("stretchers", 0.35):
            z, x = leg_h * s.between(0.2, 0.5), w / 2 * squeeze - 0.02
            y = d / 2 * squeeze - 0.02
            s.add("stretcher", cylinder((-x, -y, z), (-x, y, z), 0.01, n=8), cylinder((x, -y, z), (x, y, z), 0.01, n=8))
            s.add("stretcher", cylinder((-x, 0, z), (x, 0, z), 0.01, n=8))
    elif base == "star":
        s.add("base", join(*star_base(s.count("star arms", 4, 5), s.between(0.24, 0.32), leg_h, 0.032, s.chance(0.8))))
    elif base == "pedestal":
        r = s.between(0.18, 0.26)
        s.add(
            "base", revolve([(0, 0), (r, 0), (r, 0.015), (0.06, 0.05), (0.03, 0.1), (0.025, leg_h), (0, leg_h)], n=24)
        )
    else:
        x, y = w / 2 - 0.02, d / 2 - 0.02
        for side in (-1, 1):
            s.add(
                "leg",
                tube(
                    [(side * x, y, 0.012), (side * x, -y, 0.012), (side * x, -y, leg_h), (side * x, y, leg_h)],
                    0.013,
                    n=8,
                ),
            )
        s.add("stretcher", cylinder((-x, y, 0.012), (x, y, 0.012), 0.013, n=8))

    if arms:
        z, y = h + s.between(0.17, 0.26), -d / 2 + 0.06
        x = w / 2 + 0.01
        if s.chance(0.5):
            rest = rounded_box((x - 0.025, y, z), (x + 0.025, y0 + lean * (z - h), z + 0.03), 0.012)
            s.add_pair("armrest", join(rest, cylinder((x, y + 0.04, h - t), (x, y + 0.04, z), 0.013, n=8)))
        else:
            path = np.concatenate([bend((x, y, h - t), (x, y - 0.02, z), (x, y + 0.1, z), 6), [on_back(x, z)]])
            s.add_pair("armrest", tube(path, 0.016, n=8))


def draw_stool(s: Sketch) -> None:
    """Draw a stool: a seat without a back, often tall."""
    tall = s.choose("height", {"low": 1, "bar": 1})
    h = s.between(0.4, 0.5) if tall == "low" else s.between(0.62, 0.8)
    r, t = s.between(0.15, 0.21), s.between(0.03, 0.07)
    seat = s.choose("seat", {"round": 3, "square": 1.5, "padded": 1.5})
    if seat == "square":
        s.add("seat", rounded_box((-r, -r, h - t), (r, r, h), 0.3 * t))
    elif seat == "padded":
        s.add(
            "seat",
            revolve(
                [(0, h - t), (r, h - t), (r * 1.04, h - t / 2), (r * 0.95, h), (r * 0.6, h + 0.02), (0, h + 0.025)]
            ),
        )
    else:
        s.add("seat", revolve([(0, h - t), (r, h - t), (r, h), (0, h)]))
    if s.choose("base", {"legs": 4, "pedestal": 1.2}) == "pedestal":
        f = r * s.between(0.95, 1.25)
        s.add(
            "base", revolve([(0, 0), (f, 0), (f, 0.015), (0.05, 0.04), (0.028, 0.08), (0.028, h - t), (0, h - t)], n=24)
        )
        if tall == "bar":
            s.add("footrest", torus((0, 0, h * 0.35), r * 0.75, 0.012))
        return
    n = 4 if seat == "square" else s.count("legs", 3, 4)
    splay, inner, thick = s.between(0.0, 0.1), r * 0.72, s.between(0.014, 0.024)
    unit = circle(n) if n == 3 else circle(8)[1::2]
    s.add(
        "leg",
        *(
            cylinder(
                (x * (inner + splay), y * (inner + splay), 0), (x * inner, y * inner, h - t / 2), thick * 0.8, thick
            )
            for x, y in unit
        ),
    )
    if tall == "bar" or s.chance(0.3):
        z = h * s.between(0.25, 0.4)
        reach = inner + splay * (1 - z / h)
        if s.chance(0.5):
            s.add("footrest", torus((0, 0, z), reach, 0.011))
        else:
            corners = [(x * reach, y * reach, z) for x, y in unit]
            s.add(
                "footrest",
                join(*(cylinder(a, b, 0.01, n=8) for a, b in zip(corners, corners[1:] + corners[:1], strict=True))),
            )


def draw_bench(s: Sketch) -> None:
    """Draw a bench: a long seat of planks, indoors or in a park."""
    length, d, h = s.between(1.1, 1.9), s.between(0.32, 0.5), s.between(0.4, 0.48)
    planks = s.count("planks", 2, 5)
    gap = 0.012
    width = d / planks
    s.add(
        "seat",
        join(
            *(
                box(
                    (-length / 2, -d / 2 + k * width + gap / 2, h - 0.035),
                    (length / 2, -d / 2 + (k + 1) * width - gap / 2, h),
                )
                for k in range(planks)
            )
        ),
    )
    legs = s.choose("supports", {"panels": 2, "legs": 3, "trestle": 1.5})
    x = length / 2 * s.between(0.72, 0.95)
    if legs == "panels":
        s.add_pair("leg", box((x - 0.03, -d / 2 * 0.95, 0), (x + 0.03, d / 2 * 0.95, h - 0.03)))
    elif legs == "legs":
        s.add("leg", *four_legs(s.choose("leg style", {"square": 2, "round": 1}), x, d / 2, h - 0.02, 0.06, 0.0))
    else:
        for side in (-1, 1):
            s.add(
                "leg",
                cylinder((side * x, -d / 2, 0), (side * x, d * 0.3, h - 0.03), 0.025),
                cylinder((side * x, d / 2, 0), (side * x, -d * 0.3, h - 0.03), 0.025),
            )
    if s.maybe("back", 0.6):
        rows, lean, top = s.count("back planks", 2, 4), s.between(0.05, 0.25), h + s.between(0.35, 0.48)
        high = (top - h - 0.1) / rows
        boards = [
            box((-length / 2, d / 2 - 0.03, h + 0.1 + k * high), (length / 2, d / 2, h + 0.1 + (k + 0.82) * high))
            for k in range(rows)
        ]
        posts = [
            box((side * x - 0.03, d / 2 - 0.01, h - 0.05), (side * x + 0.03, d / 2 + 0.025, top)) for side in (-1, 1)
        ]
        s.add("back", turn(join(*boards, *posts), "x", -lean, about=(0, d / 2, h)))
        if s.maybe("armrests", 0.5):
            z = h + 0.22
            s.add_pair(
                "armrest",
                join(
                    box((x - 0.03, -d / 2, z), (x + 0.03, d / 2 + 0.03, z + 0.03)),
                    box((x - 0.02, -d / 2, h - 0.02), (x + 0.02, -d / 2 + 0.05, z)),
                ),
            )


def draw_sofa(s: Sketch) -> None:
    """Draw a sofa: an upholstered seat for one to four, with arms and a back; sometimes a corner sofa."""
    seats = s.count("seats", 1, 4)
    w, d = 0.3 + 0.62 * seats * s.between(0.9, 1.1), s.between(0.75, 0.95)
    h, top = s.between(0.36, 0.46), s.between(0.7, 0.95)
    feet = s.between(0.03, 0.14)
    arm, arm_h = s.between(0.1, 0.26), s.between(0.55, 0.68)
    thick = s.between(0.14, 0.24)
    x, y = w / 2, d / 2
    style = s.choose("arms", {"square": 3, "rolled": 2, "none": 0.7})
    inner = x if style == "none" else x - arm
    soft = s.between(0.02, 0.06)
    s.add("base", rounded_box((-x, -y + 0.02, feet), (x, y, h - 0.12), 0.02))
    back = rounded_box((-x, y - thick, feet), (x, y, top), soft)
    s.add("back", back)
    step = 2 * inner / seats
    lean = s.between(0.08, 0.25)
    for k in range(seats):
        a, b = -inner + k * step, -inner + (k + 1) * step
        s.add("seat", pillow((a, -y, h - 0.16), (b, y - thick + 0.04, h + 0.03), 7.0))
        if style != "none" or s.chance(0.5):
            s.add(
                "cushion",
                turn(
                    pillow((a, y - thick - 0.13, h), (b, y - thick + 0.03, top + 0.02), 5.0),
                    "x",
                    -lean * 0.5,
                    about=(0, y - thick, h),
                ),
            )
    if style == "square":
        s.add_pair("arm", rounded_box((x - arm, -y, feet), (x, y, arm_h), soft))
    elif style == "rolled":
        roll = cylinder(
            (x - arm / 2, -y, arm_h - arm * 0.4), (x - arm / 2, y - 0.02, arm_h - arm * 0.4), arm * 0.55, n=18
        )
        s.add_pair(
            "arm", join(box((x - arm * 0.85, -y + 0.01, feet), (x - arm * 0.15, y - 0.02, arm_h - arm * 0.4)), roll)
        )
    if s.maybe("corner", 0.25 if seats >= 2 else 0.0):
        reach, side = s.between(0.5, 0.75), -1 if s.chance(0.5) else 1
        low, high = sorted((side * inner, side * (inner - step)))
        s.add("base", rounded_box((low, -y - reach, feet), (high, -y + 0.05, h - 0.12), 0.02))
        s.add("seat", pillow((low, -y - reach, h - 0.16), (high, -y + 0.05, h + 0.03), 7.0))
    s.add(
        "foot",
        *(
            cylinder((a * (x - 0.07), b * (y - 0.07), 0), (a * (x - 0.07), b * (y - 0.07), feet + 0.01), 0.02, 0.03)
            for a in (-1, 1)
            for b in (-1, 1)
        ),
    )


CATEGORIES = (
    Category("chair", ("seat", "back", "leg", "base", "stretcher", "armrest"), draw_chair),
    Category("stool", ("seat", "leg", "base", "footrest"), draw_stool),
    Category("bench", ("seat", "leg", "back", "armrest"), draw_bench),
    Category("sofa", ("seat", "back", "arm", "cushion", "base", "foot"), draw_sofa),
)
