"""The learning rate, against itself. The reference's rates are compared in tests/parity."""

from itertools import pairwise

import pytest

from trainer.config import TrainerConfig
from trainer.schedule import learning_rate


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
