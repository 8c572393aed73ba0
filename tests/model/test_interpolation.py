"""The decoder's interpolation weights."""

import pytest
import torch

from trainer.models.hierarchical.decoder import interpolation_weights

FINE = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [0.5, 0, 0]]])
COARSE = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [0, 2, 0], [9, 9, 9]]])


def test_by_hand():
    weights = interpolation_weights(FINE, COARSE, expanded=False)
    inverse = torch.tensor([1 / 0.25, 1 / 0.25, 1 / 4.25])
    expected = torch.cat((inverse / inverse.sum(), torch.zeros(1)))
    torch.testing.assert_close(weights[0, 2], expected)
    assert weights[0, 0, 0] > 1 - 1e-7  # on top of a coarse centre
    assert weights[0, 1, 1] > 1 - 1e-7
    assert torch.equal(weights[..., 3], torch.zeros(1, 3))


@pytest.mark.parametrize("expanded", [False, True])
def test_rows_sum_to_one_over_three_centres(expanded):
    cloud = torch.randn(4, 64, 3, generator=torch.Generator().manual_seed(0))
    weights = interpolation_weights(cloud, cloud[:, :16], expanded=expanded)
    torch.testing.assert_close(weights.sum(2), torch.ones(4, 64))
    assert (weights != 0).sum(2).max() <= 3


def test_both_distance_forms_agree_but_for_rounding():
    cloud = torch.randn(8, 256, 3, generator=torch.Generator().manual_seed(1))
    cloud = cloud / cloud.norm(dim=2, keepdim=True)
    direct, expanded = (interpolation_weights(cloud, cloud[:, :64], expanded=e) for e in (False, True))
    # on the unit sphere |a|^2 + |b|^2 - 2ab is off by up to some 1e-7, which distances of about 0.1 divide
    torch.testing.assert_close(direct, expanded, rtol=0, atol=1e-4)
    assert direct.min() == 0
    assert not torch.equal(direct, expanded)
