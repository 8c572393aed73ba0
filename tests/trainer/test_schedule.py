"""The learning rate, against itself. The reference's rates are compared in tests/parity."""

import math
from itertools import pairwise

import pytest

from trainer.config import TrainerConfig
from trainer.engine.schedule import learning_rate


def test_per_step_schedule_rises_to_the_full_rate_and_falls_to_the_floor() -> None:
    config = TrainerConfig(epochs=5, warmup_epochs=1, learning_rate=1e-3, final_learning_rate=1e-5)
    rates = [learning_rate(config, step // 4, step % 4, 4) for step in range(20)]
    assert rates[0] == config.warmup_learning_rate
    assert rates[4] == 1e-3
    assert max(rates) == rates[4]
    assert all(a > b for a, b in pairwise(rates[4:]))
    assert learning_rate(config, 5, 0, 4) == 1e-5
    assert learning_rate(config, 7, 2, 4) == 1e-5  # beyond the horizon


def test_half_way_is_half_way() -> None:
    config = TrainerConfig(epochs=4, warmup_epochs=0, learning_rate=1.0, final_learning_rate=0.0)
    assert learning_rate(config, 2, 0, 10) == pytest.approx(0.5)


def test_a_longer_run_of_the_same_horizon_uses_the_same_rates() -> None:
    short, long = (TrainerConfig(epochs=n, schedule_epochs=8, warmup_epochs=1) for n in (3, 8))
    assert [learning_rate(short, e, 1, 2) for e in range(3)] == [learning_rate(long, e, 1, 2) for e in range(3)]


def test_the_references_rate_comes_an_epoch_late_and_its_cosine_counts_the_warm_up() -> None:
    """docs/method.md: epochs 0 and 1 both run at the start of the rise; of 301 epochs of 400, the last at 1.5e-4."""
    config = TrainerConfig(epochs=301, schedule="reference", schedule_epochs=400, warmup_epochs=10)

    def rate(epoch: int, step: int = 0) -> float:
        return learning_rate(config, epoch, step, 7)

    assert rate(0) == rate(1) == config.warmup_learning_rate == 1e-6
    assert rate(2) == pytest.approx(1e-6 + (1e-3 - 1e-6) / 10)
    assert rate(10) == pytest.approx(1e-6 + 9 * (1e-3 - 1e-6) / 10)
    assert rate(11) == pytest.approx(1e-6 + (1e-3 - 1e-6) * (1 + math.cos(math.pi * 10 / 400)) / 2)
    assert rate(300) == pytest.approx(1.5e-4, rel=0.02)
    assert rate(401) == rate(500) == 1e-6
    assert all(rate(epoch) == rate(epoch, step) for epoch in (0, 5, 50) for step in range(7))
