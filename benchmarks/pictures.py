"""The README's pictures, drawn anew: python -m benchmarks.pictures (or make pictures).

A cache of a few shapes that the package's own encoder was not trained on is built with the quickstart's teacher into a
temporary folder, a minute on two cores; then teacher and encoder are looked at as `i2p report` does.
"""

import io
import tempfile
from pathlib import Path

import matplotlib.image
import numpy as np
from PIL import Image

import teacher_cache
from cli.actions.build_cache import build_from
from cli.experiment.toml import load_experiment
from cli.report.panels import Panel, shape_panels
from trainer.checkpoints.models import load_model
from trainer.downstream.inspection import inspect_shapes

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
CORPUS = "synthetic:?count=144&seed=5&split=test&rotate=yaw"
CLASSES = ("airplane", "chair", "teapot", "bicycle", "guitar")
TEACHER = ("cloud", "depth-0", "depth-1", "depth-2", "saliency-0", "saliency-1", "saliency-2")
STUDENT = ("level-2", "level-0", "truth", "reconstruction", "teacher", "teacher-visible", "student")
HEADS = {
    "cloud": "the cloud", "level-2": "top tokens", "level-0": "finest tokens", "truth": "hidden, truth",
    "reconstruction": "reconstructed", "teacher": "teacher's features", "teacher-visible": "where visible",
    "student": "student's prediction",
}  # fmt: skip
COLOURS = 128  # of the palette: files stay below 150 kB
SIDE = 140  # pixels of a picture on a sheet


def main() -> None:
    """Draw both sheets."""
    with tempfile.TemporaryDirectory() as folder:
        experiment = load_experiment("quickstart", [f"corpus.uri='{CORPUS}'", f"cache.root='{folder}'"])
        cache = teacher_cache.open(build_from(experiment).path)
        wanted = [cache.label_names.index(name) for name in CLASSES]
        rows = np.array([int(np.flatnonzero(cache.labels == label)[0]) for label in wanted])
        model, header = load_model("embedded")
        points = int(header.config["trainer"]["points"])
        batch = cache.read(rows, depth=True)
        seen = inspect_shapes(model, batch, rows, image_side=cache.schema.image_side, points=points)
        panels = [{one.key: one for row in shape_panels(shape) for one in row} for shape in seen.shapes]
    for name, keys in (("teacher-views", TEACHER), ("student", STUDENT)):
        path = IMAGES / f"{name}.png"
        _sheet([[shape[key] for key in keys] for shape in panels], [_head(key) for key in keys], path)
        print(f"{path}  {path.stat().st_size / 1e3:.0f} kB")


def _head(key: str) -> str:
    return HEADS.get(key) or key.replace("-", ", view ")


def _sheet(rows: list[list[Panel]], heads: list[str], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    band, columns = 22, len(heads)
    width, height = columns * SIDE, len(rows) * SIDE + band
    figure = Figure(figsize=(width / 100, height / 100), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    for column, head in enumerate(heads):
        figure.text((column + 0.5) / columns, 1 - band / 2 / height, head, ha="center", va="center", fontsize=8)
        for row, line in enumerate(rows):
            bottom = 1 - (band + (row + 1) * SIDE) / height
            axes = figure.add_axes((column / columns + 0.004, bottom, 1 / columns - 0.008, SIDE / height * 0.97))
            axes.imshow(
                matplotlib.image.imread(io.BytesIO(line[column].png), format="png"), interpolation="antialiased"
            )
            axes.set_axis_off()
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    drawn.seek(0)
    Image.open(drawn).convert("RGB").quantize(COLOURS, method=Image.Quantize.MAXCOVERAGE).save(path, optimize=True)


if __name__ == "__main__":
    main()
