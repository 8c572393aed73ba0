"""Contact sheets: the right size, something drawn, errors named."""

import matplotlib.image
import numpy as np
import pytest

from cli.show.clouds import contact_sheet, render_cloud
from pipeline.corpora import Shape, open_corpus


def test_a_sheet_has_one_picture_a_shape(tmp_path):
    corpus = open_corpus("synthetic:?count=5", points=512)
    path = contact_sheet([corpus[i] for i in range(5)], tmp_path / "new" / "sheet.png", columns=3, side=90)
    image = matplotlib.image.imread(path)
    assert image.shape[:2] == (2 * (90 + 20), 3 * 90)
    cells = [image[r * 110 + 20 : (r + 1) * 110, c * 90 : (c + 1) * 90, :3] for r in range(2) for c in range(3)]
    assert all((cell < 0.9).any(axis=2).mean() > 0.05 for cell in cells[:5])
    assert (cells[5] == 1).all()


@pytest.mark.parametrize("colour", ["part", "height", "depth"])
def test_shapes_without_parts_are_coloured_too(tmp_path, colour):
    cloud = Shape(id="x", points=np.random.default_rng(0).normal(size=(300, 3)).astype(np.float32))
    for up in ("z", "y"):
        contact_sheet([cloud], tmp_path / f"{up}.png", titles=["a long title " * 9], colour=colour, up=up)
    assert (tmp_path / "z.png").read_bytes() != (tmp_path / "y.png").read_bytes()


def test_the_nearer_point_hides_the_farther():
    """A red plate before a blue one, seen from the front: red covers the middle."""
    x, z = np.meshgrid(np.linspace(-1, 1, 40), np.linspace(-1, 1, 40))
    front, behind = (np.stack([x.ravel() * s, np.full(1600, y), z.ravel() * s], -1) for s, y in ((0.5, -0.3), (1, 0.3)))
    colours = np.repeat([[255.0, 0, 0], [0, 0, 255.0]], 1600, axis=0)
    image = render_cloud(np.concatenate([front, behind]), colours, side=100).astype(int)
    red = (image[..., 0] > 120) & (image[..., 2] < 60)
    blue = (image[..., 2] > 120) & (image[..., 0] < 60)
    assert red.mean() > 0.08
    assert blue.mean() > 0.2
    assert red[45:60, 35:50].mean() > 0.9


def test_wrong_calls_are_named(tmp_path):
    with pytest.raises(ValueError, match="no shapes to draw"):
        contact_sheet([], tmp_path / "x.png")
    shape = open_corpus("synthetic:?count=1", points=64)[0]
    with pytest.raises(ValueError, match="2 titles for 1 shapes"):
        contact_sheet([shape], tmp_path / "x.png", titles=["a", "b"])
