"""Which tokens may look at each other."""

import pytest
import torch
from torch import Tensor

from trainer.models.heads.radius import within_radius

DISTANCES = ["direct", "expanded"]


def line(*places: float) -> Tensor:
    return torch.tensor([[[x, 0.0, 0.0] for x in places]])


@pytest.mark.parametrize("distance", DISTANCES)
def test_neighbours_on_a_line_and_the_bound_is_excluded(distance):
    near = within_radius(line(0, 1, 2, 4), 2.0, distance=distance)
    assert near.shape == (1, 1, 4, 4)
    expected = [[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 1]]  # 0 and 2 are exactly 2 apart
    assert near[0, 0].int().tolist() == expected


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("radius", [1e-30, 1e-6])
def test_a_token_always_sees_itself(distance, radius):
    centres = torch.randn(2, 40, 3, generator=torch.Generator().manual_seed(0)) * 0.3 + 5
    near = within_radius(centres, radius, distance=distance)
    assert near.diagonal(dim1=2, dim2=3).all()
    if distance == "direct":
        assert near.sum() == 2 * 40


def test_coincident_centres_see_each_other():
    near = within_radius(line(0, 0, 3), 1e-3, distance="direct")
    assert near[0, 0].int().tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]


@pytest.mark.parametrize("distance", DISTANCES)
def test_agrees_with_float64_away_from_the_radius(distance):
    centres = torch.rand(3, 64, 3, generator=torch.Generator().manual_seed(1)) * 2 - 1
    radius = 0.5
    exact = torch.cdist(centres.double(), centres.double(), compute_mode="donot_use_mm_for_euclid_dist")
    clear = (exact - radius).abs() > 1e-5
    assert clear.float().mean() > 0.999
    near = within_radius(centres, radius, distance=distance)[:, 0]
    assert torch.equal(near[clear], (exact < radius)[clear])


@pytest.mark.parametrize("distance", DISTANCES)
def test_autocast_does_not_coarsen_the_geometry(distance):
    centres = torch.rand(2, 64, 3, generator=torch.Generator().manual_seed(2))
    plain = within_radius(centres, 0.4, distance=distance)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(within_radius(centres, 0.4, distance=distance), plain)
