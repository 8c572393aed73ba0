"""The statistics behind an encoder's feature, by hand."""

import math

import pytest
import torch

from trainer.models.layers.pooling import feature_columns, feature_width, pool, pooled_feature

TOKENS = torch.tensor([[[1.0, -4.0], [3.0, -4.0], [8.0, -1.0]], [[5.0, 2.0], [7.0, 0.0], [99.0, math.nan]]])
VALID = torch.tensor([[True, True, True], [True, True, False]])


def test_maximum_mean_and_deviation_of_the_tokens_that_are_there():
    found = pool(TOKENS, VALID)
    assert found.maximum.tolist() == [[8.0, -1.0], [7.0, 2.0]]
    assert found.mean.tolist() == [[4.0, -3.0], [6.0, 1.0]]
    # over all tokens, not all but one: squared distances 9 + 1 + 16 and 1 + 1 + 4, then 1 + 1
    expected = [[math.sqrt(26 / 3), math.sqrt(2)], [1.0, 1.0]]
    torch.testing.assert_close(found.deviation, torch.tensor(expected))


def test_without_gaps_a_mask_changes_nothing():
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randn(3, 7, 5, generator=generator)
    for one, two in zip(pool(tokens, None), pool(tokens, torch.ones(3, 7, dtype=torch.bool)), strict=True):
        torch.testing.assert_close(one, two)


def test_levels_follow_each_other_finest_first_and_top_is_a_part_of_them():
    coarse = torch.tensor([[[10.0]], [[20.0]]])
    levels = pooled_feature([TOKENS, coarse], [VALID, None], "levels")
    assert levels.shape == (2, feature_width((2, 1), "levels")) == (2, 9)
    assert levels[:, :2].tolist() == [[8.0, -1.0], [7.0, 2.0]]
    assert levels[:, 6:].tolist() == [[10.0, 10.0, 0.0], [20.0, 20.0, 0.0]]
    assert pooled_feature([TOKENS, coarse], [VALID, None], "top").tolist() == [[10.0], [20.0]]
    assert feature_width((2, 1), "top") == 1
    assert pooled_feature([coarse, TOKENS], [None, VALID], "top").tolist() == [[8.0, -1.0], [7.0, 2.0]]  # maxima


@pytest.mark.parametrize("order", [1, -1])
def test_the_columns_of_a_feature_in_another_are_its_numbers(order):
    tokens, valid = [TOKENS, torch.tensor([[[10.0]], [[20.0]]])][::order], [VALID, None][::order]
    widths = [x.shape[2] for x in tokens]
    levels = pooled_feature(tokens, valid, "levels")
    for name in ("levels", "top"):
        columns = feature_columns(widths, name, "levels")
        assert torch.equal(levels[:, columns], pooled_feature(tokens, valid, name))
    assert feature_columns(widths, "levels", "top") is None


@pytest.mark.parametrize("valid", [None, torch.tensor([[True, True, True], [True, False, False]])])
def test_tokens_that_are_equal_have_a_gradient(valid):
    tokens = torch.ones(2, 3, 4, requires_grad=True)
    sum(part.sum() for part in pool(tokens, valid)).backward()
    assert torch.isfinite(tokens.grad).all()


def test_half_precision_is_pooled_in_float32():
    tokens = torch.full((1, 4096, 1), 0.1, dtype=torch.bfloat16)
    assert pool(tokens, None).mean.dtype == torch.float32
    assert pool(tokens, None).mean.item() == pytest.approx(tokens[0, 0, 0].item(), rel=1e-6)


def test_a_feature_of_another_name_is_refused():
    for call in (lambda: pooled_feature([TOKENS], [VALID], "mean"), lambda: feature_width((3,), "mean")):
        with pytest.raises(ValueError, match="feature is 'mean'; expected one of levels, top"):
            call()
