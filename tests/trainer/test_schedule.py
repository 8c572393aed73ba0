"""The learning rate, against the reference's and against itself."""

from itertools import pairwise

import pytest

from tests.support.reference import reference_json
from trainer.config import TrainerConfig
from trainer.schedule import learning_rate


@pytest.mark.parametrize("recipe", ["pretrain", "finetune_modelnet40", "finetune_scanobjectnn", "partseg"])
def test_reference_schedule_equals_the_recorded_rates_in_every_epoch(recipe: str) -> None:
    recorded = reference_json("params")["learning_rate"][recipe]
    config = TrainerConfig(
        schedule="reference",
        learning_rate=recorded["base_lr"],
        schedule_epochs=recorded["t_initial"],
        warmup_epochs=recorded["warmup"],
        epochs=recorded["max_epoch"] + 1,
    )
    rates = [learning_rate(config, epoch, 3, 7) for epoch in range(config.epochs)]
    # Same formula in float64: 7e-15 was seen, from the order of two products.
    assert rates == pytest.approx(recorded["lr_used_in_epoch"], rel=1e-13)
    assert learning_rate(config, config.epochs, 0, 7) == pytest.approx(recorded["lr_after_last_step"], rel=1e-13)


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
