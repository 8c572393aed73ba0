"""Grouping at every level from one sampling, against the recorded three samplings."""

import numpy as np
import pytest
import torch

from cuda.fps import farthest_point_sample
from tests.support.reference import reference_arrays, reference_json
from trainer.model_config import ModelConfig
from trainer.tokenizer import gather, neighbourhoods, tokenise


@pytest.mark.parametrize("rule", ["skip", "plain"])
def test_one_sampling_gives_all_recorded_levels(rule):
    arrays = reference_arrays("grouping")
    sizes = reference_json("config")["config"]["grouping"]
    config = ModelConfig(
        groups=tuple(sizes["groups"]), neighbours=tuple(sizes["ks"]), fps_skip_near_origin=rule == "skip"
    )
    points = torch.from_numpy(arrays["pts"])
    levels, chosen = tokenise(points, config)
    np.testing.assert_array_equal(chosen, arrays[f"{rule}__fps_l0"])
    below = points
    for i, level in enumerate(levels):
        prefix = torch.arange(level.centres.shape[1]).expand(len(points), -1)
        if i > 0:  # the recorded sampling of centres among centres is the prefix that we take
            np.testing.assert_array_equal(prefix, arrays[f"{rule}__fps_l{i}"])
        np.testing.assert_array_equal(level.members, arrays[f"{rule}__knn_l{i}"])
        if rule == "skip":
            np.testing.assert_array_equal(level.centres, arrays[f"skip__center_l{i}"])
            np.testing.assert_array_equal(neighbourhoods(below, level)[:, :4], arrays[f"skip__neigh_l{i}_first4"])
            np.testing.assert_array_equal(gather(below, level.members)[:, :4], arrays[f"skip__neigh_ori_l{i}_first4"])
        below = level.centres


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("cloud", ["ball", "grid", "shell"])
def test_sampling_the_sample_again_returns_a_prefix(cloud, skip):
    generator = torch.Generator().manual_seed(5)
    if cloud == "grid":  # distances tie everywhere
        points = torch.cartesian_prod(*[torch.linspace(-1, 1, 7)] * 3)[None]
    else:
        points = torch.randn(3, 300, 3, generator=generator)
        if cloud == "shell":
            points = points / points.norm(dim=2, keepdim=True)
        points[:, :5] *= 1e-3  # some near the origin, the first among them
    chosen = farthest_point_sample(points, 128, skip_near_origin=skip)
    again = farthest_point_sample(gather(points, chosen), 50, skip_near_origin=skip)
    assert torch.equal(again, torch.arange(50).expand_as(again))
