"""Pictures of cache records and training curves."""

import io
import json
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from cli.show.clouds import ramp, render_cloud
from cli.show.titles import loss_title
from teacher_cache.format.records import TeacherRecord
from teacher_cache.storage.atomic import replace_file

__all__ = [
    "GRID",
    "INK",
    "contrastive_curve",
    "curves",
    "depth_image",
    "heights",
    "pyplot",
    "record_sheet",
    "saliency_image",
    "save_figure",
]

INK, GRID = "#222222", "#dddddd"
_BASELINES = (("#2f8f5b", "--"), ("#8a5fb0", "-."), ("#777777", ":"))  # told apart without colour, too
EMPTY = 0.5  # the depth image where nothing was drawn
CLOUD_SIDE = 220  # pixels
HEAT = np.array([(140, 152, 170), (206, 160, 92), (232, 122, 50), (196, 40, 36), (120, 8, 40)], float)  # cold to hot
GLOW = 0.45  # opacity of the hottest place beside the object


def record_sheet(records: Sequence[TeacherRecord], path: Path, *, titles: Sequence[str] | None = None) -> None:
    """Draw one row per record: the cloud, then each view's depth image and the teacher's saliency over it.

    Records without stored depth images show the saliency alone. Saliency is scaled to its own range in each view; the
    object has its colour, grey where the teacher does not look, dark red where it looks most.
    """
    plt = pyplot()
    views = len(records[0].saliency)
    figure = plt.figure(figsize=(2.1 * (1 + 2 * views), 2.25 * len(records)), layout="constrained")
    columns = 1 + 2 * views
    for row, record in enumerate(records):
        cloud = figure.add_subplot(len(records), columns, row * columns + 1)
        cloud.imshow(render_cloud(record.points, heights(record.points), side=CLOUD_SIDE), interpolation="nearest")
        cloud.set_axis_off()
        cloud.set_title(titles[row] if titles else record.id, fontsize=9, color=INK)
        for view in range(views):
            depth = figure.add_subplot(len(records), columns, row * columns + 2 + view)
            salient = figure.add_subplot(len(records), columns, row * columns + 2 + views + view)
            image = None if record.depth is None else np.asarray(record.depth[view], np.float32)
            for axis in (depth, salient):
                axis.set_axis_off()
            if image is not None:
                depth.imshow(depth_image(image), interpolation="nearest")
            salient.imshow(saliency_image(record.saliency[view], image), interpolation="nearest")
            if row == 0:
                depth.set_title(f"depth, view {view}", fontsize=9, color=INK)
                salient.set_title(f"saliency, view {view}", fontsize=9, color=INK)
    save_figure(figure, path, plt)


def curves(run_dir: Path, path: Path) -> bool:
    """Draw losses and linear-SVM accuracy over the epochs from RUN/train.jsonl; False if there is nothing to draw."""
    lines = [json.loads(line) for line in (run_dir / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    epochs = [line for line in lines if line["event"] == "epoch"]
    scores = [line for line in lines if line["event"] == "evaluation"]
    if not epochs:
        return False
    plt = pyplot()
    logged = dict.fromkeys(name for line in epochs for name in line if name.startswith("loss_"))
    shown = [name for name in logged if any(line.get(name) for line in epochs)]
    panels = len(shown) + bool(scores)
    figure, axes = plt.subplots(1, panels, figsize=(4.2 * panels, 3.2), layout="constrained", squeeze=False)
    for axis, name in zip(axes[0], shown, strict=False):
        axis.plot(
            [line["epoch"] for line in epochs], [line.get(name, 0.0) for line in epochs], color="#1f5fa8", marker="."
        )
        axis.set_title(loss_title(name), fontsize=10)
    if scores:
        _accuracies(axes[0][-1], scores)
    for axis in axes[0]:
        axis.set_xlabel("epoch")
        axis.set_xlim(0, epochs[-1]["epoch"] + 0.5)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(color=GRID)
    save_figure(figure, path, plt)
    return True


def contrastive_curve(log: Path, path: Path) -> None:
    """Draw a tiny CLIP's loss and the share of images whose own caption fits best, over the steps of log.jsonl."""
    # A run that was killed repeats the steps after its last checkpoint; the later line of a step counts.
    steps = {line["step"]: line for line in map(json.loads, log.read_text(encoding="utf-8").splitlines())}
    lines = [steps[step] for step in sorted(steps)]
    plt = pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.2), layout="constrained")
    for axis, name, title in zip(axes, ("loss", "accuracy"), ("contrastive loss", "own caption first"), strict=True):
        values = np.array([line[name] for line in lines])
        axis.plot([line["step"] for line in lines], values, color="#1f5fa8", linewidth=0.8)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step")
        axis.set_ylim(0)
        axis.grid(color=GRID)
    save_figure(figure, path, plt)


def _accuracies(axis: Any, scores: Sequence[dict[str, Any]]) -> None:
    names = sorted({name for line in scores for name in line["result"]["rows"]})
    looks = dict(zip((name for name in names if name != "trained"), cycle(_BASELINES), strict=False))
    for name in names:
        points = [(line["epoch"], line["result"]["rows"][name]) for line in scores if name in line["result"]["rows"]]
        epochs, rows = zip(*points, strict=True)
        values = [row["accuracy"] for row in rows]
        if name == "trained":
            axis.plot(epochs, values, color="#b3452c", marker="o", label=name)
        else:  # a baseline is one number: a line to compare with
            color, style = looks[name]
            axis.axhline(values[-1], linestyle=style, color=color, label=name)
    axis.set_title("linear SVM accuracy", fontsize=10)
    axis.legend(fontsize=8)


def heights(points: np.ndarray) -> np.ndarray:
    """Return colours [N, 3] in 0..255 by height, so that a row reads the same whatever parts a shape has."""
    import matplotlib

    height = points[:, 2]
    share = (height - height.min()) / max(float(np.ptp(height)), 1e-12)
    return np.asarray(matplotlib.colormaps["viridis"](0.1 + 0.8 * share))[:, :3] * 255


def depth_image(depth: np.ndarray) -> np.ndarray:
    """Colour a depth view [S, S] float, near dark, on nothing: [S, S, 4] uint8 with alpha."""
    import matplotlib

    drawn = depth != EMPTY
    values = depth[drawn]
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
    share = (depth - low) / max(high - low, 1e-12)
    image = np.asarray(matplotlib.colormaps["cividis"](0.05 + 0.85 * np.clip(share, 0, 1)))
    image[..., 3] = drawn
    return (image * 255).round().astype(np.uint8)


def saliency_image(saliency: np.ndarray, depth: np.ndarray | None, side: int = 224) -> np.ndarray:
    """Draw the teacher's attention as the colour of the object itself, and as a faint glow around it.

    saliency  [T] float, T patches in rows; scaled to its own range.
    depth     [S, S] float, the view, whose drawn pixels are opaque; None: the glow alone, at full strength.
    side      of the picture without a view.
    ->        [S or side, same, 4] uint8 with alpha, on nothing, so that it reads on light and dark.
    """
    patches = round(len(saliency) ** 0.5)
    share = (saliency - saliency.min()) / max(float(np.ptp(saliency)), 1e-12)
    side = side if depth is None else depth.shape[0]
    heat = _enlarged(share.reshape(patches, patches), side)
    image = np.empty((side, side, 4))
    image[..., :3] = ramp(heat, HEAT)
    drawn = np.zeros((side, side), bool) if depth is None else depth != EMPTY
    image[..., 3] = 255 * np.where(drawn, 1.0, heat * (GLOW if depth is not None else 1.0))
    return image.round().astype(np.uint8)


def _enlarged(values: np.ndarray, side: int) -> np.ndarray:
    """Interpolate [P, P] linearly between the patches' centres to [side, side]."""
    count = len(values)
    at = np.clip((np.arange(side) + 0.5) * count / side - 0.5, 0, count - 1)
    rows = np.stack([np.interp(at, np.arange(count), column) for column in values.T], axis=1)
    return np.stack([np.interp(at, np.arange(count), row) for row in rows])


def pyplot() -> Any:
    """Import matplotlib.pyplot, drawing to files only."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def save_figure(figure: Any, path: Path, plt: Any) -> None:
    """Write a figure, on white, and close it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=110, facecolor="white", format=path.suffix[1:].lower() or "png")
    plt.close(figure)
    replace_file(path, drawn.getvalue())
