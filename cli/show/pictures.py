"""Pictures of cache records and training curves."""

import io
import json
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from cli.show.clouds import render_cloud
from teacher_cache.format.records import TeacherRecord
from teacher_cache.storage.atomic import replace_file

__all__ = ["GRID", "INK", "contrastive_curve", "curves", "pyplot", "record_sheet", "save_figure"]

INK, GRID = "#222222", "#dddddd"
_TITLES = {"loss_3d": "3D loss (Chamfer)", "loss_2d": "2D loss (MSE)", "loss_global": "global loss (InfoNCE)"}
_BASELINES = (("#2f8f5b", "--"), ("#8a5fb0", "-."), ("#777777", ":"))  # told apart without colour, too
EMPTY = 0.5  # the depth image where nothing was drawn
CLOUD_SIDE = 220  # pixels


def record_sheet(records: Sequence[TeacherRecord], path: Path, *, titles: Sequence[str] | None = None) -> None:
    """Draw one row per record: the cloud, then each view's depth image and the teacher's saliency over it.

    Records without stored depth images show the saliency alone. Saliency is scaled to its own range in each view.
    """
    plt = pyplot()
    views = len(records[0].saliency)
    figure = plt.figure(figsize=(2.1 * (1 + 2 * views), 2.25 * len(records)), layout="constrained")
    columns = 1 + 2 * views
    for row, record in enumerate(records):
        cloud = figure.add_subplot(len(records), columns, row * columns + 1)
        cloud.imshow(render_cloud(record.points, _heights(record.points), side=CLOUD_SIDE), interpolation="nearest")
        cloud.set_axis_off()
        cloud.set_title(titles[row] if titles else record.id, fontsize=9, color=INK)
        for view in range(views):
            depth = figure.add_subplot(len(records), columns, row * columns + 2 + view)
            salient = figure.add_subplot(len(records), columns, row * columns + 2 + views + view)
            image = None if record.depth is None else np.asarray(record.depth[view], np.float32)
            _image(depth, image)
            _saliency(salient, image, record.saliency[view])
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
        axis.set_title(_TITLES.get(name, f"{name.removeprefix('loss_')} loss"), fontsize=10)
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


def _heights(points: np.ndarray) -> np.ndarray:
    """Return colours [N, 3] in 0..255 by height, so that a row reads the same whatever parts a shape has."""
    import matplotlib

    height = points[:, 2]
    share = (height - height.min()) / max(float(np.ptp(height)), 1e-12)
    return np.asarray(matplotlib.colormaps["viridis"](0.1 + 0.8 * share))[:, :3] * 255


def _image(axis: Any, image: np.ndarray | None) -> None:
    axis.set_axis_off()
    if image is not None:
        shown = np.ma.masked_where(image == EMPTY, image)
        axis.imshow(shown, cmap="cividis", interpolation="nearest")


def _saliency(axis: Any, image: np.ndarray | None, saliency: np.ndarray) -> None:
    axis.set_axis_off()
    side = round(len(saliency) ** 0.5)
    extent = (0, side, side, 0)
    if image is not None:
        axis.imshow(image != EMPTY, cmap="gray_r", extent=extent, interpolation="nearest", vmin=0, vmax=1.6)
    axis.imshow(
        saliency.reshape(side, side),
        cmap="inferno",
        alpha=0.75 if image is not None else 1.0,
        extent=extent,
        interpolation="bicubic",
    )


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
