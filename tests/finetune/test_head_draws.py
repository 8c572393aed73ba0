"""Draws of a fine-tuning step: functions of the record, not of its batch."""

import numpy as np
import torch

from tests.support.models import TINY
from trainer.models.heads.random_inputs import Dropout, HeadDraws
from trainer.randomness import Purpose


def draws(records: list[int], **parts: int) -> HeadDraws:
    return HeadDraws.for_records(records, TINY, **{"seed": 3, "epoch": 1, **parts})


def test_a_record_draws_the_same_in_any_batch():
    together, apart = draws([5, 9, 2]), draws([9])
    assert torch.equal(together.drop_path[1:2], apart.drop_path)
    assert torch.equal(together.dropout[1:2], apart.dropout)
    x = torch.randn(3, 7, 11, generator=torch.Generator().manual_seed(0))
    drop = Dropout(0.4, site=1)
    assert torch.equal(drop(x, together.dropout)[1:2], drop(x[1:2], apart.dropout))


def test_seed_epoch_record_and_site_each_change_the_draws():
    x = torch.ones(1, 400)
    kept = [
        Dropout(0.5, site=site)(x, draws([record], seed=seed, epoch=epoch).dropout)[0] > 0
        for record, seed, epoch, site in [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]
    ]
    agree = (torch.stack(kept)[:, None] == torch.stack(kept)).float().mean(2)
    # two independent choices agree at half of 400 places, +- 0.025; 5 sigma
    assert (agree - 0.5 - 0.5 * torch.eye(5)).abs().max() < 0.125


def test_both_halves_of_a_key_matter():
    keys = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
    kept = (Dropout(0.5, site=0)(torch.ones(4, 400), keys) > 0).float()
    agree = (kept[:, None] == kept).float().mean(2)
    assert (agree - 0.5 - 0.5 * torch.eye(4)).abs().max() < 0.125  # 5 sigma


def test_purposes_keep_their_numbers_and_share_none():
    """Runs that were begun with a number go on with it."""
    assert {purpose.name: int(purpose) for purpose in Purpose} == {
        "MASK": 1, "DROP_PATH": 2, "DROPOUT": 3, "POINTS": 16, "AUGMENTATION": 17, "SUBSET": 18, "POSE": 19,
        "ORDER": 20, "ROTATION": 21,
    }  # fmt: skip
    assert len({int(purpose) for purpose in Purpose.__members__.values()}) == len(Purpose.__members__)


def test_share_kept_and_scale():
    keys = draws(list(range(50))).dropout
    for chance in (0.1, 0.5, 0.8):
        y = Dropout(chance, site=0)(torch.ones(50, 2000), keys)
        kept = (y > 0).float()
        # 100,000 choices: standard deviation at most 0.0016 over all, 0.011 for a record, 0.071 for a place; 5 sigma
        assert abs(kept.mean().item() - (1 - chance)) < 0.008
        assert (kept.mean(1) - (1 - chance)).abs().max() < 0.056
        assert (kept.mean(0) - (1 - chance)).abs().max() < 0.36
        np.testing.assert_allclose(y[y > 0], 1 / (1 - chance), rtol=1e-6)


def test_neighbouring_values_are_dropped_independently():
    kept = (Dropout(0.5, site=0)(torch.ones(20, 5000), draws(list(range(20))).dropout) > 0).float() - 0.5
    for lag in (1, 2, 3, 64, 1024):
        together = (kept[:, lag:] * kept[:, :-lag]).mean().item() * 4
        assert abs(together) < 5 / (20 * (5000 - lag)) ** 0.5


def test_no_dropout_returns_its_input():
    x = torch.randn(2, 5)
    assert Dropout(0.5, site=0)(x, None) is x
    assert Dropout(0.0, site=0)(x, draws([0, 1]).dropout) is x


def test_dropped_values_have_no_gradient():
    x = torch.ones(2, 100, requires_grad=True)
    y = Dropout(0.5, site=0)(x, draws([0, 1]).dropout)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())
