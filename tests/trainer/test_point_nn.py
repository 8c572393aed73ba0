"""Point-NN against a definition in plain loops, and what it promises of clouds."""

import math

import numpy as np
import pytest
import torch

from tests.support.training import clouds
from trainer.downstream.baselines.point_nn import PointNN, trigonometric
from trainer.downstream.clouds import read_clouds
from trainer.downstream.features import encode, feature_name
from trainer.downstream.linear_svm import linear_svm

SMALL = PointNN(stages=2, neighbours=7, width=12, alpha=50.0, beta=10.0)


def plain(points, encoder):
    """The encoder's definition for one cloud [N, 3], in float64."""

    def sines(offset, width):
        count = width // 6
        found = []
        for axis in range(3):
            for k in range(count):
                angle = encoder.beta * offset[axis] / encoder.alpha ** (k / count)
                found += [math.sin(angle), math.cos(angle)]
        return np.array(found)

    def gelu(x):
        return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))

    points = points.astype(np.float64)
    features = np.array([sines(point, encoder.width) for point in points])
    for stage in range(encoder.stages):
        chosen = [0]
        while len(chosen) < len(points) // 2:
            dist2 = ((points[:, None] - points[chosen]) ** 2).sum(2).min(1)
            chosen.append(int(dist2.argmax()))
        near = [np.argsort(((points - points[c]) ** 2).sum(1), kind="stable")[: encoder.neighbours] for c in chosen]
        members = np.array([features[group] - features[c] for group, c in zip(near, chosen, strict=True)])
        offsets = np.array([points[group] - points[c] for group, c in zip(near, chosen, strict=True)])
        members = members / (members.std(ddof=1) + 1e-5)
        offsets = offsets / (offsets.std(ddof=1) + 1e-5)
        rows = []
        for group, (c, own) in enumerate(zip(chosen, members, strict=True)):
            grown = np.concatenate([own, np.repeat(features[c][None], len(own), 0)], axis=1)
            place = np.array([sines(offset, encoder.width * 2 ** (stage + 1)) for offset in offsets[group]])
            weighed = (grown + place) * place
            rows.append(gelu(weighed.max(0) + weighed.mean(0)))
        points, features = points[chosen], np.array(rows)
    return features.max(0) + features.mean(0)


def test_it_is_its_definition():
    found = SMALL(clouds(3, points=40))
    assert (found.shape, found.dtype) == ((3, 48), np.float32)
    for cloud, feature in zip(clouds(3, points=40), found, strict=True):
        expected = plain(cloud, SMALL)
        # float32 against float64, through sines of angles up to 30
        assert feature == pytest.approx(expected, abs=2e-4 * np.abs(expected).max())


def test_a_feature_depends_on_its_cloud_alone():
    points = clouds(6, points=64)
    together = SMALL(points)
    assert np.array_equal(together[4:5], SMALL(points[4:5]))
    assert np.array_equal(together, encode(SMALL, points, batch_size=4))
    assert feature_name(SMALL) == "point-nn"


def test_sines_of_the_coordinates():
    found = trigonometric(torch.tensor([[0.0, 0.5, -1.0]]), 12, alpha=4.0, beta=2.0)
    angles = [angle for x in (0.0, 0.5, -1.0) for angle in (2 * x, 2 * x / 2)]
    assert found[0].tolist() == pytest.approx([f(a) for a in angles for f in (math.sin, math.cos)])
    with pytest.raises(ValueError, match="width = 10 is not a multiple of 6"):
        trigonometric(torch.zeros(1, 3), 10, alpha=4.0, beta=2.0)
    with pytest.raises(ValueError, match="clouds have 8 points; with 4 stages, each of which halves them, at least 16"):
        PointNN()(np.zeros((1, 8, 3), np.float32))


def test_it_tells_synthetic_categories_apart():
    """Not a figure to compare: that the feature carries shape at all, far above the largest class (20 %)."""
    categories = "chair,table,mug,car,airplane"
    encoder = PointNN(stages=3, neighbours=24, width=36)
    sets = [
        read_clouds(f"synthetic:?count={count}&split={split}&categories={categories}", points=256)
        for count, split in ((60, "train"), (40, "test"))
    ]
    train, test = (encode(encoder, part.points, batch_size=20) for part in sets)
    assert linear_svm(train, sets[0].labels, test, sets[1].labels).accuracy >= 0.9
