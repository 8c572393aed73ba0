"""Pictures of shapes and runs: what is drawn is there, and can be told apart."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.pictures import SIDE, _sheet
from cli.report.panels import cloud_panel
from cli.show.clouds import ramp, render_cloud, render_points
from cli.show.pictures import EMPTY, HEAT, _accuracies, depth_image, pyplot, saliency_image


def test_every_encoder_has_a_line_of_its_own() -> None:
    final = {name: {"accuracy": 0.1 * k} for k, name in enumerate(("coordinates", "untrained", "embedded", "trained"))}
    scores = [
        {"epoch": 5, "result": {"rows": {"trained": {"accuracy": 0.2}}}},
        {"epoch": 10, "result": {"rows": final}},
    ]
    plt = pyplot()
    figure, axis = plt.subplots()
    _accuracies(axis, scores)
    looks = {line.get_label(): (line.get_color(), line.get_linestyle()) for line in axis.get_lines()}
    assert set(looks) == set(final)
    assert len({color for color, _ in looks.values()}) == len({style for _, style in looks.values()}) == len(looks)
    plt.close(figure)


def test_saliency_is_the_colour_of_the_object_and_a_glow_beside_it() -> None:
    depth = np.full((24, 24), EMPTY, np.float32)
    depth[6:18, 3:21] = 0.8
    saliency = np.zeros(16, np.float32)
    saliency[5] = 2.0  # the patch of rows and columns 6 to 11
    image = saliency_image(saliency, depth)
    assert image.shape == (24, 24, 4)
    drawn = depth != EMPTY
    assert (image[drawn][:, 3] == 255).all()  # the object stays, however hot
    near = (11 / 12) ** 2  # row and column 8 lie a twelfth of a patch from the middle of the hot one
    assert np.abs(image[8, 8, :3] - ramp(np.array(near), HEAT)).max() <= 0.5
    assert (image[16, 19, :3] == HEAT[0]).all()
    assert image[22, 22, 3] == 0
    assert 0 < image[4, 8, 3] < 255  # near the hot patch, beside the object
    flat = saliency_image(np.full(16, 0.25, np.float32), depth)
    assert (flat[drawn][:, :3] == HEAT[0]).all()
    alone = saliency_image(saliency, None, side=20)
    assert alone.shape == (20, 20, 4)
    assert alone[7, 7, 3] > 200


@pytest.mark.parametrize("patches", [1, 3, 7])
def test_saliency_is_interpolated_between_the_middles_of_patches(patches: int) -> None:
    from cli.show.pictures import _enlarged

    rng, side = np.random.default_rng(patches), 21
    values = rng.random((patches, patches))
    expected = np.zeros((side, side))
    for row in range(side):
        for column in range(side):
            y, x = (min(max((at + 0.5) * patches / side - 0.5, 0), patches - 1) for at in (row, column))
            i, j = int(y), int(x)
            k, m = min(i + 1, patches - 1), min(j + 1, patches - 1)
            above = values[i, j] * (1 - x + j) + values[i, m] * (x - j)
            below = values[k, j] * (1 - x + j) + values[k, m] * (x - j)
            expected[row, column] = above * (1 - y + i) + below * (y - i)
    np.testing.assert_allclose(_enlarged(values, side), expected, atol=1e-12)


def test_depth_is_drawn_where_there_is_any() -> None:
    depth = np.full((9, 9), EMPTY, np.float32)
    assert (depth_image(depth)[..., 3] == 0).all()
    depth[2, 3], depth[4, 5] = 0.1, 0.9
    image = depth_image(depth)
    assert np.argwhere(image[..., 3]).tolist() == [[2, 3], [4, 5]]
    assert (image[2, 3, :3] != image[4, 5, :3]).any()


def test_points_are_drawn_within_the_frame_of_another_cloud() -> None:
    rng = np.random.default_rng(3)
    cloud = rng.standard_normal((200, 3))
    grey = np.full((200, 3), 90.0)
    whole = render_points(cloud, grey, side=60)
    again = render_points(cloud * 7 + 3, grey, side=60)  # place and scale do not matter
    np.testing.assert_allclose(whole.astype(int), again.astype(int), atol=2)
    part = render_points(cloud[:5], grey[:5], side=60, within=cloud)
    assert ((part[..., 3] > 0) <= (whole[..., 3] > 0)).all()
    assert 0 < (part[..., 3] > 0).sum() < (whole[..., 3] > 0).sum()
    large = render_points(cloud[:5], grey[:5], side=60, within=cloud, sizes=np.full(5, 3.0))
    assert (large[..., 3] > 0).sum() > 3 * (part[..., 3] > 0).sum()
    assert (render_points(cloud[:0], grey[:0], side=60, within=cloud) == 0).all()
    assert render_points(np.zeros((1, 3)), np.zeros((1, 3)), side=60)[..., 3].any()
    white = render_cloud(cloud, grey, side=60)
    assert (white[whole[..., 3] == 0] == 255).all()


def test_a_sheet_is_a_small_file_with_every_picture(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [[cloud_panel(f"{k}", "", rng.standard_normal((50, 3)), colour) for k in range(3)]
            for colour in ((255.0, 0.0, 0.0), (0.0, 0.0, 255.0))]  # fmt: skip
    path = tmp_path / "sheet.png"
    _sheet(rows, ["a", "b", "c"], path)
    image = np.asarray(Image.open(path).convert("RGB")).astype(int)
    assert image.shape[1] == 3 * SIDE
    for row in range(2):
        for column in range(3):
            part = image[-(2 - row) * SIDE :][:SIDE, column * SIDE : (column + 1) * SIDE]
            kept, other = (0, 2) if row == 0 else (2, 0)
            assert (part[..., kept] - part[..., other]).max() > 60
