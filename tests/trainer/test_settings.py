"""Every fault of a section is reported, in words."""

import pytest

from trainer.config import EvaluationConfig, TrainerConfig


def test_defaults_have_no_problems() -> None:
    assert list(TrainerConfig().problems()) == []
    assert list(EvaluationConfig().problems()) == []


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"epochs": 0}, "epochs = 0 is smaller than 1"),
        ({"batch_size": 6, "accumulation": 4}, "batch_size = 6 is not a multiple of accumulation = 4"),
        ({"points": 8}, "points = 8 is neither 0 (all stored points) nor at least 32"),
        ({"scale": (1.5, 0.5)}, "scale = (1.5, 0.5) is not an ascending range"),
        ({"scale": (0.0, 0.5)}, "scale = (0.0, 0.5) has 0.0, which is not positive"),
        ({"shift": -0.1}, "shift = -0.1 is negative"),
        ({"learning_rate": float("nan")}, "learning_rate = nan is not a number"),
        ({"weight_decay": -1.0}, "weight_decay = -1.0 is negative"),
        ({"betas": (0.9, 1.0)}, "betas = (0.9, 1.0) has 1.0, which is outside 0..1 (1 excluded)"),
        ({"epochs": 10}, "warmup_epochs = 10 leaves no epoch of epochs = 10 for the cosine"),
        ({"schedule_epochs": 5}, "warmup_epochs = 10 leaves no epoch of schedule_epochs = 5 for the cosine"),
        ({"schedule": "linear"}, "schedule = 'linear' is none of per-step, reference"),
        ({"no_decay": "all"}, "no_decay = 'all' is none of vectors, reference"),
        ({"precision": "float64"}, "precision = 'float64' is none of float32, bfloat16, float16"),
        ({"device": "tpu"}, "device = 'tpu' is none of auto, cpu, cuda, cuda:N"),
        (
            {"device": "cpu", "precision": "float16"},
            'precision = "float16" needs a GPU, and device = "cpu"; use float32 or bfloat16',
        ),
        ({"seed": -1}, "seed = -1 is outside 0..2^63-1"),
    ],
)
def test_each_problem_of_the_trainer_is_named(settings: dict, text: str) -> None:
    assert list(TrainerConfig(**settings).problems()) == [text]


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"train": "npz:a"}, "test = \"\" while train = 'npz:a'; set both or neither"),
        (
            {"train": "a", "test": "npz:b"},
            "train = 'a' has no kind; expected KIND:LOCATION, for instance folder:meshes",
        ),
        ({"points": 16}, "points = 16 is smaller than 32"),
        ({"stored_points": 512}, "stored_points = 512 is less than points = 1024"),
        ({"protocol": "best"}, "protocol = 'best' is none of cross-validated, reference"),
        ({"grid": ()}, "grid = () is empty"),
        ({"folds": 1}, "folds = 1 is smaller than 2"),
        ({"seeds": 0}, "seeds = 0 is smaller than 1"),
        ({"reference_c": 0.0}, "reference_c = 0.0 is not positive"),
        ({"every": -1}, "every = -1 is negative"),
    ],
)
def test_each_problem_of_the_evaluation_is_named(settings: dict, text: str) -> None:
    assert list(EvaluationConfig(**settings).problems()) == [text]


def test_all_problems_come_at_once() -> None:
    assert len(list(TrainerConfig(epochs=0, warmup_epochs=0, prefetch=0, device="x").problems())) == 3
