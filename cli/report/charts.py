"""Charts of reports by matplotlib: transparent PNGs whose ink reads on light and on dark."""

import io
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np

from cli.show.titles import loss_title

__all__ = ["RUN_COLOURS", "bar_chart", "class_counts", "confusion_chart", "map_chart", "run_curves"]

INK = "#757b85"  # contrast 4.2 on the light page and 4.3 on the dark one
GRID = "#757b8540"
RUN_COLOURS = ("#2b83d6", "#d95f02", "#1b9e77", "#c2539b", "#c49a00", "#56a6c8")  # told apart by most eyes
STYLES = ("-", "--", "-.", ":")  # a second cycle, for more runs than colours and for print
MARKERS = "osD^vP*X"
MOST_STEPS = 400  # points of a step curve; more are averaged
DPI = 130


def run_curves(runs: Sequence[tuple[str, Sequence[Mapping[str, Any]]]]) -> list[tuple[str, str, bytes]]:
    """Draw each loss over the epochs, every run in each chart, and accuracies; -> (key, title, PNG) of each.

    runs  (name, events as `trainer.engine.events.read_events` gives them).
    """
    logged = [name for _, events in runs for event in events if event.get("event") == "epoch" for name in event]
    losses = [
        name
        for name in dict.fromkeys(logged)
        if name.startswith("loss_") and any(_number(event.get(name)) for _, events in runs for event in events)
    ]
    charts = []
    for place, name in enumerate(losses):
        figure = _figure(4.6, 3.2)
        axis = figure.subplots()
        for colour, style, (run, events) in zip(cycle(RUN_COLOURS), _styles(), runs, strict=False):
            _steps(axis, name, events, colour)
            epochs = [event for event in events if event.get("event") == "epoch" and _number(event.get(name))]
            axis.plot(
                [event["epoch"] for event in epochs], [event[name] for event in epochs],
                color=colour, linestyle=style, marker="." if len(epochs) < 40 else None, label=_plain(run),
            )  # fmt: skip
        charts.append(_over_epochs(figure, axis, f"curve-{place}", loss_title(name), runs))
    if any(event.get("event") == "evaluation" for _, events in runs for event in events):
        figure = _figure(4.6, 3.2)
        axis = figure.subplots()
        _accuracies(axis, runs)
        charts.append(_over_epochs(figure, axis, "curve-accuracy", "linear SVM accuracy, %", runs))
    return charts


def _over_epochs(figure: Any, axis: Any, key: str, title: str, runs: Sequence[object]) -> tuple[str, str, bytes]:
    axis.set_title(_plain(title), fontsize=10)
    axis.set_xlabel("epoch")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set_xlim(left=0)
    if len(runs) > 1 or key == "curve-accuracy":
        axis.legend(fontsize=8, labelcolor=INK, framealpha=0)
    _dress(axis)
    return key, title, _png(figure)


def _steps(axis: Any, name: str, events: Sequence[Mapping[str, Any]], colour: str) -> None:
    """A faint line through the steps, placed in epochs."""
    steps = [event for event in events if event.get("event") == "step" and _number(event.get(name))]
    start = next((event for event in events if event.get("event") == "start"), {})
    per_epoch = start.get("steps_per_epoch")
    if not steps or not isinstance(per_epoch, int) or per_epoch < 1:
        return
    x = np.array([event["step"] for event in steps], float) / per_epoch
    y = np.array([event[name] for event in steps], float)
    parts = np.array_split(np.arange(len(x)), min(len(x), MOST_STEPS))
    axis.plot([x[part].mean() for part in parts], [y[part].mean() for part in parts], color=colour, alpha=0.35, lw=0.9)


def _accuracies(axis: Any, runs: Sequence[tuple[str, Sequence[Mapping[str, Any]]]]) -> None:
    for colour, style, (run, events) in zip(cycle(RUN_COLOURS), _styles(), runs, strict=False):
        scores = [event for event in events if event.get("event") == "evaluation"]
        points = [
            (event["epoch"], event["result"]["rows"]["trained"])
            for event in scores
            if "trained" in event.get("result", {}).get("rows", {})
        ]
        if not points:
            continue
        label = _plain(run) if len(runs) > 1 else "trained"
        axis.errorbar(
            [epoch for epoch, _ in points], [100 * row["accuracy"] for _, row in points],
            yerr=[100 * row.get("spread", 0.0) for _, row in points],
            color=colour, linestyle=style, marker="o", markersize=4, capsize=2, label=label,
        )  # fmt: skip
        if len(runs) == 1:
            others = [(name, row) for name, row in scores[-1]["result"]["rows"].items() if name != "trained"]
            for shade, dash, (name, row) in zip(cycle(RUN_COLOURS[1:]), cycle(STYLES[1:]), others, strict=False):
                axis.axhline(100 * row["accuracy"], color=shade, linestyle=dash, lw=1.2, label=_plain(name))


def map_chart(places: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> bytes:
    """Draw an embedding map [k, 2], a colour and marker for each class and its name amid its shapes; -> a PNG."""
    import matplotlib

    figure = _figure(7.2, 6.0)
    axis = figure.subplots()
    classes = np.unique(labels).tolist()
    palette = matplotlib.colormaps["tab20"](np.arange(20))
    for place, label in enumerate(classes):
        mine = places[labels == label]
        axis.scatter(
            mine[:, 0], mine[:, 1], s=13, linewidths=0, alpha=0.85,
            color=palette[place % len(palette)], marker=MARKERS[place // len(palette) % len(MARKERS)],
        )  # fmt: skip
        middle = mine[np.linalg.norm(mine - np.median(mine, axis=0), axis=1).argmin()]
        name = _plain(names[label]) if 0 <= label < len(names) else "no class"
        axis.annotate(name, middle, fontsize=7, color=INK, ha="center", va="center", weight="bold")
    axis.set_axis_off()
    return _png(figure)


def confusion_chart(counts: np.ndarray, names: Sequence[str]) -> bytes:
    """Draw a confusion matrix [true, predicted] as shares of each row; -> a PNG. Rows without a shape stay empty."""
    present = np.flatnonzero(counts.sum(axis=0) + counts.sum(axis=1))
    shown = counts[np.ix_(present, present)]
    totals = shown.sum(axis=1, keepdims=True)
    share = np.where(totals > 0, shown / np.maximum(totals, 1), np.nan)
    side = float(np.clip(0.19 * len(present) + 2.0, 3.6, 12.0))
    figure = _figure(side + 0.6, side)
    axis = figure.subplots()
    image = axis.imshow(np.ma.masked_invalid(share), cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    size = 8 if len(present) <= 40 else 5
    labels = [_plain(names[index]) for index in present.tolist()]
    axis.set_xticks(range(len(present)), labels, rotation=90, fontsize=size)
    axis.set_yticks(range(len(present)), labels, fontsize=size)
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    if len(present) <= 12:
        for i, j in zip(*np.nonzero(shown), strict=True):
            ink = "white" if share[i, j] > 0.6 else "#222222"
            axis.text(j, i, int(shown[i, j]), ha="center", va="center", fontsize=7, color=ink)
    _dress(axis, grid=False)
    bar = figure.colorbar(image, ax=axis, fraction=0.04, pad=0.02)
    bar.ax.tick_params(colors=INK, labelsize=7)
    bar.outline.set_edgecolor(INK)
    return _png(figure)


def bar_chart(rows: Sequence[tuple[str, float, float | None]], *, unit: str) -> bytes:
    """Draw horizontal bars, the first on top; -> a PNG.

    rows  (name, value, spread or None).
    """
    figure = _figure(6.4, 0.32 * len(rows) + 0.7)
    axis = figure.subplots()
    values = [value for _, value, _ in rows]
    errors = [spread or 0.0 for _, _, spread in rows]
    axis.barh(
        range(len(rows)), values, xerr=errors if any(errors) else None, color=RUN_COLOURS[0], height=0.62,
        error_kw={"ecolor": INK, "capsize": 2},
    )  # fmt: skip
    axis.set_yticks(range(len(rows)), [_plain(name) for name, _, _ in rows], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel(unit, fontsize=8)
    _dress(axis)
    return _png(figure)


def class_counts(counts: Sequence[tuple[str, int]]) -> bytes:
    """Draw the number of shapes of each class, the most frequent first; beyond 60 classes without names. -> a PNG"""
    ordered = sorted(counts, key=lambda item: (-item[1], item[0]))
    figure = _figure(7.4, 2.9)
    axis = figure.subplots()
    axis.bar(range(len(ordered)), [count for _, count in ordered], color=RUN_COLOURS[0], width=0.8)
    if len(ordered) <= 60:
        axis.set_xticks(range(len(ordered)), [_plain(name) for name, _ in ordered], rotation=90, fontsize=7)
    else:
        axis.set_xlabel(f"{len(ordered)} classes, the most frequent first")
    axis.set_ylabel("shapes")
    axis.set_ylim(bottom=0)
    _dress(axis)
    return _png(figure)


def _styles() -> Any:
    """A line style for each run: solid until the colours are used up."""
    for style in cycle(STYLES):
        yield from [style] * len(RUN_COLOURS)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value)) and value != 0


def _plain(text: str, longest: int = 28) -> str:
    """Names as they are, not as mathematics, on one line and of bounded length."""
    from cli.show.terminal import escaped

    line = escaped(" ".join(str(text).split())).replace("$", r"\$")
    return line if len(line) <= longest else line[: longest - 1] + "…"


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _dress(axis: Any, *, grid: bool = True) -> None:
    axis.patch.set_alpha(0)
    axis.tick_params(colors=INK, labelsize=8)
    for text in (axis.title, axis.xaxis.label, axis.yaxis.label):
        text.set_color(INK)
    for spine in axis.spines.values():
        spine.set_color(GRID)
    for label in (*axis.get_xticklabels(), *axis.get_yticklabels()):
        label.set_color(INK)
    if grid:
        axis.grid(color=GRID, lw=0.6)
        axis.set_axisbelow(True)


def _png(figure: Any) -> bytes:
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", transparent=True, metadata={"Software": ""})
    return drawn.getvalue()
