"""Why one sampling serves all levels. That it gives the recorded groups is compared in tests/parity."""

import pytest
import torch

from cuda.fps import farthest_point_sample
from trainer.models.tokens.grouping import gather


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
