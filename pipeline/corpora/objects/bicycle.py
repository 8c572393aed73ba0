"""The bicycle. Its length runs along y, the front wheel at -y."""

import numpy as np

from pipeline.corpora.objects.primitives import (
    bend,
    box,
    cylinder,
    join,
    loft,
    move,
    rounded_box,
    shifted,
    torus,
    tube,
    turn,
)
from pipeline.corpora.objects.sketch import Category, Sketch

__all__ = ["CATEGORIES"]


def draw_bicycle(s: Sketch) -> None:
    """Draw a bicycle: two spoked wheels, a frame, handlebars, a saddle and a crank with pedals."""
    r = s.between(0.3, 0.36)
    base = s.between(0.98, 1.12)
    style = s.choose("style", {"road": 2, "city": 2, "mountain": 2})
    tyre = {"road": 0.012, "city": 0.018, "mountain": 0.027}[style]
    front, rear = np.array([0, -base * 0.56, r]), np.array([0, base * 0.44, r])
    crank = np.array([0, 0.02, r * s.between(0.78, 0.9)])
    saddle = np.array([0, 0.17, r + s.between(0.5, 0.62)])
    seat_top = crank + 0.78 * (saddle - crank)
    head = np.array([0, front[1] + 0.2, r + s.between(0.42, 0.52)])
    fork_top = head + 0.18 * (front - head)
    tubing = s.between(0.014, 0.02)
    spokes = s.count("spokes", 8, 14)
    spoke = cylinder((0, 0, 0), (0, 0, r - tyre), 0.0035, n=4, caps=False)
    fan = [turn(spoke, "x", angle) for angle in np.arange(spokes) * (2 * np.pi / spokes)]
    axle = cylinder((-0.035, 0, 0), (0.035, 0, 0), 0.02, n=10)
    wheel = join(torus((0, 0, 0), r - tyre, tyre, axis="x", n=30, sides=8), axle, *fan)
    s.add("wheel", move(wheel, front), move(wheel, rear))
    step_through = style == "city" and s.maybe("step-through", 0.6)
    joint = crank + 0.3 * (seat_top - crank) if step_through else seat_top
    bars = [(crank, seat_top), (seat_top, saddle - (0, 0, 0.02)), (joint, head), (crank, fork_top)]
    s.add("frame", *(cylinder(a, b, tubing) for a, b in bars))
    s.add(
        "frame",
        *(
            cylinder(shifted(a, x, 0, 0), shifted(rear, x * 2.5, 0, 0), tubing * 0.6, n=8)
            for a in (crank, seat_top)
            for x in (-0.015, 0.015)
        ),
    )
    s.add(
        "fork",
        cylinder(shifted(head, 0, 0.015, 0.04), fork_top, tubing * 1.15),
        *(
            cylinder(shifted(fork_top, x * 0.5, 0, 0), shifted(front, x, 0, 0), tubing * 0.75, n=8)
            for x in (-0.045, 0.045)
        ),
    )
    s.add(
        "saddle",
        loft(
            np.array(
                [
                    [
                        (sx * w, saddle[1] + y, saddle[2] + z)
                        for sx, z in ((-1, 0.02), (-0.8, 0.04), (0.8, 0.04), (1, 0.02), (0.6, 0.0), (-0.6, 0.0))
                    ]
                    for y, w in ((-0.14, 0.018), (-0.03, 0.03), (0.08, 0.075), (0.12, 0.07))
                ]
            )
        ),
    )
    top = head + np.array([0, 0.03, s.between(0.08, 0.14)])
    s.add("handlebar", cylinder(head, top, tubing))
    width = s.between(0.2, 0.3)
    if style == "road":
        for side in (-1, 1):
            x = side * width * 0.85
            s.add(
                "handlebar",
                tube(
                    np.concatenate(
                        [
                            [top, shifted(top, x, 0, 0)],
                            bend(
                                shifted(top, x, -0.04, 0),
                                shifted(top, x, -0.16, -0.02),
                                shifted(top, x, -0.05, -0.13),
                                7,
                            ),
                        ]
                    ),
                    0.012,
                    n=8,
                ),
            )
    else:
        sweep = 0.14 if style == "city" else 0.03
        for side in (-1, 1):
            s.add(
                "handlebar",
                tube(
                    bend(top, shifted(top, side * width * 0.8, -0.03, 0.03), shifted(top, side * width, sweep, 0.0), 7),
                    0.012,
                    n=8,
                ),
            )
    s.add("crank", cylinder(crank - (0.01, 0, 0), shifted(crank, 0.03, 0, 0), s.between(0.06, 0.09), n=18))
    angle = s.between(0, np.pi)
    arm = 0.16 * np.array([0, np.cos(angle), np.sin(angle)])
    for side in (-1, 1):
        end = crank + side * arm + (side * 0.05, 0, 0)
        s.add(
            "pedal",
            join(
                cylinder(shifted(crank, side * 0.04, 0, 0), end, 0.011, n=8),
                rounded_box(shifted(end, -0.045, -0.03, -0.01), shifted(end, 0.045, 0.03, 0.01), 0.006),
            ),
        )
    if s.maybe("mudguards", 0.7 if style == "city" else 0.1):
        for hub, low, high in ((front, 0.25, 0.8), (rear, 0.15, 0.85)):
            t = np.linspace(low * np.pi, high * np.pi, 10)
            s.add(
                "mudguard", tube(hub + np.stack([0 * t, (r + 0.03) * np.cos(t), (r + 0.03) * np.sin(t)], -1), 0.02, n=8)
            )
    if s.maybe("basket", 0.35 if style == "city" else 0.0):
        s.add("basket", box(shifted(top, -0.15, -0.3, -0.16), shifted(top, 0.15, -0.06, 0.06)))


CATEGORIES = (
    Category(
        "bicycle",
        ("wheel", "frame", "fork", "saddle", "handlebar", "crank", "pedal", "mudguard", "basket"),
        draw_bicycle,
    ),
)
