"""Each seed and each epoch reaches every draw it names; what is drawn per axis differs per axis, and goes both ways.

A draw that is the same in every epoch, or under every seed, trains and scores all the same: no loss looks odd, only the
augmentation is gone, or the spread over seeds is too small. So every purpose is looked at alone.
"""

from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.models import TINY, tiny_model
from tests.support.training import MASKING, train, trainer_config
from trainer.checkpoints.models import load_model
from trainer.config import TrainerConfig
from trainer.engine.augmentation import scale_and_shift
from trainer.engine.ranks import Ranks
from trainer.models.build import new_student
from trainer.models.random_inputs import Draws
from trainer.pretraining.data import Loader, Part
from trainer.pretraining.step import Stepper

STILL = {"points": 0, "resample": False, "renormalise": False, "scale": (1.0, 1.0), "shift": 0.0}
ONE = Ranks(rank=0, size=1, device=torch.device("cpu"))


def parts(cache: Any, seed: int, epoch: int, **settings: Any) -> list[Part]:
    loader = Loader(cache, TINY, trainer_config(**{**STILL, "batch_size": 6, **settings}, seed=seed), ONE)
    return [part for batch in loader.epoch(epoch) for part in batch]


def by_record(found: list[Part], what: Callable[[Part], torch.Tensor]) -> np.ndarray:
    """[records, ...], in the order of the cache."""
    records = np.concatenate([part.records for part in found])
    values = torch.cat([what(part) for part in found]).numpy()
    return values[np.argsort(records)]


PURPOSES: dict[str, tuple[dict[str, Any], Callable[[list[Part]], np.ndarray]]] = {
    "order of the shapes": ({}, lambda found: np.concatenate([part.records for part in found])[:, None]),
    "points": ({"points": 96, "resample": True}, lambda found: by_record(found, lambda p: p.points_canonical[:, :, 0])),
    "scale": (
        {"scale": (0.5, 2.0)},
        lambda found: by_record(found, lambda p: p.points.std(1) / p.points_canonical.std(1)),
    ),
    "shift": ({"shift": 0.3}, lambda found: by_record(found, lambda p: (p.points - p.points_canonical).mean(1))),
    "mask": ({}, lambda found: by_record(found, lambda p: p.draws.mask)),
    "drop path": ({}, lambda found: by_record(found, lambda p: p.draws.drop_path)),
}


@pytest.mark.parametrize("purpose", PURPOSES)
def test_seed_and_epoch_each_reach(cache: Any, purpose: str) -> None:
    settings, read = PURPOSES[purpose]
    seen = [read(parts(cache, seed, epoch, **settings)) for seed in (0, 1) for epoch in (0, 1)]
    for one, other in combinations(seen, 2):
        # nearly all: of an order of 24, one or two stay where they were by chance
        assert (one != other).any(axis=1).mean() > 0.7
    again = read(parts(cache, 1, 1, **settings))
    assert np.array_equal(again, seen[3]), "and nothing else does"


def test_the_masks_of_a_shape_change_from_epoch_to_epoch(cache: Any) -> None:
    model = tiny_model()

    def visible(seed: int, epoch: int) -> np.ndarray:
        def look(part: Part) -> torch.Tensor:
            return model.plan(part.points, part.points_canonical, part.maps, part.draws).tokens[-1].visible

        return by_record(parts(cache, seed, epoch), look)

    first, later, seeded = visible(0, 0), visible(0, 1), visible(1, 0)
    assert (first.sum(1) == 3).all()
    for other in (later, seeded):
        assert (first != other).any(axis=1).mean() > 0.8  # of 56 masks, one in 56 is the same by chance


def test_a_step_uses_the_draws_of_its_part(cache: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the loader drew is what the student masks and skips by, in accumulated parts as well."""
    config = trainer_config(accumulation=2, compile=False)
    model = new_student(TINY, MASKING, {"channels": cache.schema.channels, "views": 3}, seed=0)
    stepper = Stepper(model, config, ONE, None)
    plan, network = model.plan, stepper._network
    masks: list[torch.Tensor] = []
    paths: list[torch.Tensor] = []
    monkeypatch.setattr(model, "plan", lambda *a, **k: masks.append(a[3].mask) or plan(*a, **k))
    monkeypatch.setattr(stepper, "_network", lambda made, path: paths.append(path) or network(made, path))
    batch = next(Loader(cache, TINY, config, ONE).epoch(0))
    stepper.step(batch, 1e-3)
    assert len(batch) == len(masks) == len(paths) == 2
    for part, mask, path in zip(batch, masks, paths, strict=True):
        assert torch.equal(mask, part.draws.mask)
        assert torch.equal(path, part.draws.drop_path)


def test_no_purpose_shares_its_numbers_with_another() -> None:
    """The correlation over 2000 records of any two numbers that a step draws: 1 where they are one number."""
    records = np.arange(2000)
    moved = scale_and_shift(np.zeros((2000, 1, 3), np.float32), records, scale=(1.0, 1.0), shift=1.0, seed=0, epoch=0)
    grown = scale_and_shift(np.ones((2000, 1, 3), np.float32), records, scale=(1.0, 2.0), shift=0.0, seed=0, epoch=0)
    draws = Draws.for_records(records, TINY, seed=0, epoch=0)
    columns = np.concatenate([moved[:, 0], grown[:, 0], draws.mask.numpy(), draws.drop_path.numpy()], axis=1)
    apart = np.abs(np.corrcoef(columns.T) - np.eye(columns.shape[1]))
    assert apart.max() < 0.15  # 6 standard deviations of independent columns


@pytest.mark.parametrize("axis", range(3))
def test_scale_and_shift_cover_their_range_on_every_axis(axis: int) -> None:
    """Uniform, both ends reached, shifts both ways."""
    records = np.arange(3000)

    def column(scale: tuple[float, float], shift: float, value: float) -> np.ndarray:
        points = np.full((3000, 1, 3), value, np.float32)
        return scale_and_shift(points, records, scale=scale, shift=shift, seed=3, epoch=5)[:, 0, axis]

    for values, low, high in ((column((0.5, 2.0), 0.0, 1.0), 0.5, 2.0), (column((1.0, 1.0), 0.25, 0.0), -0.25, 0.25)):
        counts = np.histogram(values, 10, (low, high))[0]
        assert counts.sum() == 3000
        assert counts.min() > 220  # 300 expected, standard deviation 16


def test_the_runs_seed_is_the_loaders_and_the_first_weights(cache: Any, tmp_path: Path) -> None:
    """Nothing of a run may hang on a seed that is not trainer.seed."""
    losses = []
    for seed in (0, 7):
        events: list[Any] = []
        train(cache, tmp_path / f"{seed}", epochs=1, seed=seed, on_event=events.append)
        losses.append([event.losses["3d"] for event in events if type(event).__name__ == "StepDone"])
    assert len(losses[0]) == 3
    assert all(a != b for a, b in zip(*losses, strict=True))
    weights = [new_student(TINY, MASKING, {"channels": 6, "views": 3}, seed=seed).state_dict() for seed in (0, 7)]
    drawn = [name for name, value in weights[0].items() if value.is_floating_point() and value.std() > 1e-6]
    assert len(drawn) > 30
    assert all(not torch.equal(weights[0][name], weights[1][name]) for name in drawn)


@pytest.mark.parametrize("seed", [0, 7])
def test_a_run_begins_with_the_weights_of_its_seed(cache: Any, tmp_path: Path, seed: int) -> None:
    """Seen after an epoch of steps too small to move them."""
    rates = {"learning_rate": 1e-12, "warmup_learning_rate": 1e-13, "final_learning_rate": 1e-13}
    train(cache, tmp_path, epochs=1, seed=seed, weight_decay=0.0, **rates)
    expected = dict(new_student(TINY, MASKING, {"channels": 6, "views": 3}, seed=seed).named_parameters())
    for name, value in load_model(tmp_path)[0].named_parameters():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-9)


def test_the_default_augmentation_is_on() -> None:
    config = TrainerConfig()
    assert (config.resample, config.renormalise, config.scale, config.shift) == (True, True, (2 / 3, 3 / 2), 0.2)
