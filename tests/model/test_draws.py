"""The random numbers of a step."""

import numpy as np
import torch

from trainer.models.config import ModelConfig
from trainer.models.random_inputs import Draws
from trainer.randomness import record_uniforms

CONFIG = ModelConfig(encoder_depths=(1, 1, 1))


def test_a_record_gets_the_same_numbers_in_any_company():
    together = Draws.for_records([7, 3, 9], CONFIG, seed=1, epoch=2)
    alone = Draws.for_records([3], CONFIG, seed=1, epoch=2)
    assert torch.equal(together.mask[1:2], alone.mask)
    assert torch.equal(together.drop_path[1:2], alone.drop_path)
    assert together.mask.shape == (3, 64)
    assert together.drop_path.shape == (3, 2 * (3 + 2))
    assert together.mask.dtype == torch.float32


def test_seed_epoch_record_and_stream_each_change_all_numbers():
    base = record_uniforms([5], 64, seed=1, epoch=2, purpose=3)
    for other in (
        record_uniforms([6], 64, seed=1, epoch=2, purpose=3),
        record_uniforms([5], 64, seed=2, epoch=2, purpose=3),
        record_uniforms([5], 64, seed=1, epoch=3, purpose=3),
        record_uniforms([5], 64, seed=1, epoch=2, purpose=4),
    ):
        assert (base != other).mean() > 0.99


def test_asking_for_more_only_appends():
    few, many = (record_uniforms([5, 6], count, seed=0, epoch=0, purpose=1) for count in (8, 20))
    np.testing.assert_array_equal(few, many[:, :8])


def test_numbers_are_uniform_independent_and_never_an_end():
    values = record_uniforms(np.arange(4000), 50, seed=0, epoch=0, purpose=1)
    assert values.dtype == np.float32
    assert values.min() > 0
    assert values.max() < 1
    counts = np.histogram(values, 20, (0, 1))[0]
    expected = values.size / 20
    assert ((counts - expected) ** 2 / expected).sum() < 43.8  # 19 degrees of freedom, one in a thousand
    correlation = np.corrcoef(values[:-1].ravel(), values[1:].ravel())[0, 1]
    assert abs(correlation) < 5 / np.sqrt(values.size)
    correlation = np.corrcoef(values[:, :-1].ravel(), values[:, 1:].ravel())[0, 1]
    assert abs(correlation) < 5 / np.sqrt(values.size)


def test_the_largest_number_is_still_below_one():
    top = np.float32(2**23 - 1)
    assert (top + np.float32(0.5)) / np.float32(2**23) < 1


def test_large_seeds_are_taken():
    assert record_uniforms([2**40], 2, seed=2**63 - 1, epoch=10**6, purpose=16).shape == (1, 2)
