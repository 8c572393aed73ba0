"""Laws of the masking: who is drawn, how often, and what follows below."""

import itertools

import pytest
import torch
from torch import Tensor

from tests.support.models import TINY
from trainer.models.config import MaskingConfig
from trainer.models.tokens.grouping import Level, tokenise
from trainer.models.tokens.masking import draw_order, propagate, top_visible, weight_logits


def uniforms(*shape: int, seed: int = 0) -> Tensor:
    return (torch.randint(1 << 23, shape, generator=torch.Generator().manual_seed(seed)).float() + 0.5) / (1 << 23)


def test_every_order_is_drawn_as_often_as_one_by_one_without_replacement():
    weights = torch.tensor([0.45, 0.3, 0.15, 0.1])
    draws = 60_000
    orders = draw_order(weights.log().expand(draws, 4), uniforms(draws, 4))
    code = (orders * torch.tensor([64, 16, 4, 1])).sum(1)
    chi2 = 0.0
    for order in itertools.permutations(range(4)):
        chance, left = 1.0, 1.0
        for i in order:
            chance *= weights[i].item() / left
            left -= weights[i].item()
        seen = int((code == sum(i * p for i, p in zip(order, (64, 16, 4, 1), strict=True))).sum())
        chi2 += (seen - draws * chance) ** 2 / (draws * chance)
    assert chi2 < 49.7  # 23 degrees of freedom: exceeded once in a thousand seeds


def test_adding_a_constant_to_the_logits_changes_nothing():
    logits = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
    noise = uniforms(5, 16)
    assert torch.equal(draw_order(logits, noise), draw_order(logits + 4.0, noise))


def test_a_low_temperature_keeps_the_most_salient_visible():
    saliency = torch.randn(8, 64, generator=torch.Generator().manual_seed(2)) * 1e-3
    config = MaskingConfig(saliency="standardised", temperature=1e-4)
    order = draw_order(weight_logits(saliency, config), uniforms(8, 64))
    assert torch.equal(order, saliency.argsort(dim=1, descending=True, stable=True))


def test_raw_attention_is_almost_random_and_random_mode_is():
    saliency = torch.rand(2, 64, generator=torch.Generator().manual_seed(3)) / 197
    raw = weight_logits(saliency, MaskingConfig()).softmax(1)
    assert raw.max() / raw.min() < 1.01
    assert torch.equal(weight_logits(saliency, MaskingConfig(mode="random")), torch.zeros(2, 64))


def test_flat_saliency_gives_equal_weights():
    for value in (0.0, 0.1, 1 / 197):
        logits = weight_logits(torch.full((1, 7), value), MaskingConfig(saliency="standardised"))
        assert torch.equal(logits, logits[:, :1].expand_as(logits))
        assert logits.isfinite().all()


def test_hand_made_hierarchy():
    def level(groups: int, members: list[list[int]]) -> Level:
        return Level(torch.zeros(1, groups, 3), torch.tensor([members]))

    levels = [level(5, [[0]] * 5), level(3, [[0, 1], [1, 4], [2, 3]]), level(2, [[0, 1], [2, 0]])]
    visible = propagate(torch.tensor([[True, False]]), levels, token0_leak=False)
    assert [v.int().tolist() for v in visible] == [[[1, 1, 0, 0, 1]], [[1, 1, 0]], [[1, 0]]]
    visible = propagate(torch.tensor([[False, True]]), levels, token0_leak=False)
    assert [v.int().tolist() for v in visible] == [[[1, 1, 1, 1, 0]], [[1, 0, 1]], [[0, 1]]]


def test_the_leak_is_one_token_of_the_first_sample():
    members = torch.tensor([[[2, 3], [1, 3]], [[2, 3], [1, 3]]])
    levels = [Level(torch.zeros(2, 4, 3), torch.zeros(2, 4, 1, dtype=torch.long)), Level(torch.zeros(2, 2, 3), members)]
    top = torch.tensor([[True, True], [True, False]])
    assert propagate(top, levels, token0_leak=False)[0].int().tolist() == [[0, 1, 1, 1], [0, 0, 1, 1]]
    assert propagate(top, levels, token0_leak=True)[0].int().tolist() == [[1, 1, 1, 1], [0, 0, 1, 1]]
    everything = torch.ones(2, 2, dtype=torch.bool)
    assert propagate(everything, levels, token0_leak=True)[0].int().tolist() == [[0, 1, 1, 1], [0, 1, 1, 1]]


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.8, 0.99])
def test_visible_tokens_are_exactly_the_members_of_visible_groups(ratio):
    cloud = torch.randn(6, 96, 3, generator=torch.Generator().manual_seed(4))
    levels, _ = tokenise(cloud, TINY)
    kept = MaskingConfig(ratio=ratio).visible(TINY.groups[-1])
    order = draw_order(torch.zeros(6, TINY.groups[-1]), uniforms(6, TINY.groups[-1]))
    visible = propagate(top_visible(order, kept), levels, token0_leak=False)
    assert visible[-1].sum(1).tolist() == [kept] * 6
    for b in range(6):
        for level, above, below in zip(levels[1:], visible[1:], visible[:-1], strict=True):
            members = set(level.members[b][above[b]].flatten().tolist())
            assert members == set(below[b].nonzero().flatten().tolist())


@pytest.mark.parametrize(
    ("ratio", "groups", "kept"), [(0.8, 64, 13), (0.75, 8, 2), (0.0, 64, 64), (0.999, 64, 1), (0.5, 7, 4)]
)
def test_number_of_visible_tokens(ratio, groups, kept):
    assert MaskingConfig(ratio=ratio).visible(groups) == kept
