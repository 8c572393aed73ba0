"""What a step hands to the optimiser, and a run to its steps."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.models import TINY
from tests.support.training import MASKING, train, trainer_config
from trainer.engine.events import EpochDone, StepDone
from trainer.engine.optimiser import build_optimizer
from trainer.engine.ranks import Ranks
from trainer.engine.schedule import learning_rate
from trainer.models.build import new_student
from trainer.pretraining.data import Loader
from trainer.pretraining.step import Stepper

ALONE = Ranks(rank=0, size=1, device=torch.device("cpu"))


def stepper(*, stands_for: float = 1.0, seed: int = 0, **settings: Any) -> Stepper:
    model = new_student(TINY, MASKING, {"channels": 6, "views": 3}, seed=seed)
    return Stepper(model, trainer_config(**settings), ALONE, None, stands_for=stands_for)


@pytest.fixture
def batch(cache: Any) -> Any:
    return next(Loader(cache, TINY, trainer_config(), ALONE).epoch(0))


def weights(of: Stepper) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in of.model.named_parameters()}


def gradients(of: Stepper) -> dict[str, torch.Tensor]:
    return {name: value.grad.clone() for name, value in of.model.named_parameters() if value.grad is not None}


def test_the_rate_that_is_given_is_the_rate_that_is_taken(batch: Any) -> None:
    """None at 0; twice as far at twice the rate: AdamW's first step is proportional to it."""
    moved = []
    for rate in (0.0, 1e-3, 2e-3):
        one = stepper()
        before = weights(one)
        one.step(batch, rate)
        moved.append({name: value - before[name] for name, value in weights(one).items()})
    assert all((value == 0).all() for value in moved[0].values())
    trained = [name for name, value in stepper().model.named_parameters() if value.requires_grad]
    for name in trained:
        assert moved[1][name].abs().max() > 0
        # weights of 1 in float32 leave 1e-7 of rounding beside steps of 1e-3
        torch.testing.assert_close(moved[2][name], 2 * moved[1][name], rtol=1e-3, atol=1e-6)


def test_a_step_has_the_gradient_of_its_own_batch_alone(cache: Any) -> None:
    first, second = list(Loader(cache, TINY, trainer_config(), ALONE).epoch(0))[:2]
    one, other = stepper(), stepper()
    one.step(first, 0.0)
    found = one.step(second, 0.0)
    assert found == other.step(second, 0.0)
    assert gradients(one).keys() == gradients(other).keys()
    assert all(torch.equal(value, gradients(other)[name]) for name, value in gradients(one).items())


def test_a_step_trains_batch_norms_even_after_an_evaluation(batch: Any) -> None:
    one = stepper()
    one.model.eval()
    before = {name: value.clone() for name, value in one.model.named_buffers()}
    one.step(batch, 1e-3)
    assert one.model.training
    moved = [name for name, value in one.model.named_buffers() if not torch.equal(value, before[name])]
    assert set(moved) == set(before)


def test_a_channel_that_stands_for_several_weighs_as_if_it_were_one(batch: Any) -> None:
    """Of a basis: the 2D loss and its gradient are means over the teacher's channels."""
    plain, basis = stepper(), stepper(stands_for=4.0)
    a, b = plain.step(batch, 0.0), basis.step(batch, 0.0)
    assert b.losses["2d"] == pytest.approx(a.losses["2d"] / 4, rel=1e-6)
    assert b.losses["3d"] == a.losses["3d"]
    name = "rec_head_2d.weight"
    torch.testing.assert_close(4 * gradients(basis)[name], gradients(plain)[name], rtol=1e-5, atol=1e-9)


def test_the_2d_weight_reaches_the_gradient_and_not_the_reported_loss(batch: Any) -> None:
    plain, half = stepper(), stepper(weight_2d=0.5)
    a, b = plain.step(batch, 0.0), half.step(batch, 0.0)
    assert a.losses == b.losses
    name = "rec_head_2d.weight"
    torch.testing.assert_close(2 * gradients(half)[name], gradients(plain)[name], rtol=1e-5, atol=1e-9)
    name = "rec_head_3d.weight"
    torch.testing.assert_close(gradients(half)[name], gradients(plain)[name])


def test_the_reported_losses_are_the_models_own(batch: Any) -> None:
    one = stepper()
    (part,) = batch
    twin = copy.deepcopy(one.model).train()
    expected = twin(part.points, part.points_canonical, part.maps, part.draws)
    found = one.step(batch, 1e-3)
    assert found.losses["3d"] == pytest.approx(expected["3d"].mean.item(), rel=1e-6)
    assert found.losses["2d"] == pytest.approx(expected["2d"].mean.item(), rel=1e-6)


def test_the_optimiser_is_the_configured_one() -> None:
    config = trainer_config(betas=(0.8, 0.95), epsilon=1e-6, weight_decay=0.3, learning_rate=0.7)
    optimizer = build_optimizer(new_student(TINY, MASKING, {"channels": 6, "views": 3}, seed=0), config)
    for group in optimizer.param_groups:
        assert (group["betas"], group["eps"], group["lr"]) == ((0.8, 0.95), 1e-6, 0.7)
        assert not group["amsgrad"]


@pytest.mark.parametrize("schedule", ["per-step", "reference"])
def test_a_run_takes_each_step_at_its_rate_and_reports_means(cache: Any, tmp_path: Path, schedule: str) -> None:
    events: list[Any] = []
    train(cache, tmp_path, epochs=3, schedule=schedule, on_event=events.append)
    config = trainer_config(epochs=3, schedule=schedule)
    steps = [event for event in events if isinstance(event, StepDone)]
    assert [step.learning_rate for step in steps] == [
        learning_rate(config, epoch, index, 3) for epoch in range(3) for index in range(3)
    ]
    assert schedule == "reference" or len({step.learning_rate for step in steps}) == 9
    for done in (event for event in events if isinstance(event, EpochDone)):
        own = steps[3 * (done.epoch - 1) : 3 * done.epoch]
        for name in ("3d", "2d"):
            assert done.losses[name] == pytest.approx(sum(step.losses[name] for step in own) / 3, rel=1e-12)
        assert done.gradient_norm == pytest.approx(sum(step.gradient_norm for step in own) / 3, rel=1e-12)
