"""Block masking of the hierarchical student: the hidden top tokens are one neighbourhood."""

import torch

from tests.support.models import tiny_batch, tiny_model
from trainer.models.config import MaskingConfig
from trainer.models.random_inputs import Draws


def test_hidden_top_tokens_are_the_nearest_to_one_of_them():
    points, maps = tiny_batch(batch=6)
    model = tiny_model(masking=MaskingConfig(mode="block", ratio=0.6))
    plan = model.plan(points, points, maps, Draws.for_records(range(6), model.config, seed=0, epoch=0))
    hidden = ~plan.tokens[-1].visible
    assert hidden.sum(1).tolist() == [4] * 6  # of 8
    apart = torch.cdist(plan.levels[-1].centres, plan.levels[-1].centres)
    for sample in range(6):
        sets = [set(apart[sample, start].argsort()[:4].tolist()) for start in range(8)]
        assert set(hidden[sample].nonzero()[:, 0].tolist()) in sets
