"""A student of a cache with channels of its own: its head, its loss, its checkpoints, and a live teacher beside it."""

import json
from dataclasses import replace

import pytest
import torch

import teacher_cache
from pipeline.teacher.live import LiveTeacher
from pipeline.teacher.tower import load_teacher
from tests.support.builds import COUNT, POINTS, small_build
from tests.support.teachers import TINY_PROJECTION, tiny_teacher
from tests.support.training import MASKING, MODEL, train, trainer_config
from trainer.checkpoints import files as checkpoint
from trainer.checkpoints.models import load_encoder
from trainer.engine.ranks import Ranks
from trainer.errors import CheckpointError
from trainer.models.build import new_student
from trainer.pretraining import loop
from trainer.pretraining.data import Loader

OWN = {"channels": 5, "sample": 12, "features": "float32"}
ALONE = Ranks(rank=0, size=1, device=torch.device("cpu"))
PLAIN = {"points": POINTS, "resample": False, "scale": (1.0, 1.0), "shift": 0.0, "epochs": 1, "batch_size": 8}


def losses(report):
    lines = [json.loads(line) for line in (report.run_dir / "train.jsonl").read_text().splitlines()]
    return [(line["loss_3d"], line["loss_2d"]) for line in lines if line["event"] == "step"]


def test_the_students_head_has_the_caches_channels(tmp_path):
    cache = teacher_cache.open(small_build(tmp_path, cache=OWN).path)
    report = train(cache, tmp_path / "run", **PLAIN)
    header = checkpoint.read_header(report.checkpoint)
    assert header.teacher == {"channels": 5, "views": 3}
    assert header.cache["basis"] == cache.basis.sha256
    weights = checkpoint.read_tensors(report.checkpoint, header, checkpoint.MODEL)
    head = next(value for name, value in weights.items() if name.endswith("rec_head_2d.bias"))
    assert len(head) * 8 == 5 * len(new_student(MODEL, MASKING, {"channels": 8, "views": 3}, seed=0).rec_head_2d.bias)
    assert load_encoder(tmp_path / "run").encode(torch.rand(2, POINTS, 3)).shape[0] == 2


def test_cached_and_live_losses_agree_in_the_basis(tmp_path):
    cache = teacher_cache.open(small_build(tmp_path, cache=OWN).path)
    live = LiveTeacher(TINY_PROJECTION, load_teacher(tiny_teacher(tmp_path)), cache.basis)
    stored = losses(train(cache, tmp_path / "cached", **PLAIN))
    looked = losses(train(cache, tmp_path / "live", teacher=live, **PLAIN))
    assert len(stored) == len(looked) == COUNT // 8
    # As tests/build/test_live_training.py, whose bound for float32 features is 5e-6; a product more is in between here.
    for mine, theirs in zip(stored, looked, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)


def test_the_2d_loss_is_a_mean_over_the_teachers_channels(tmp_path, monkeypatch):
    """So the same squared error in fewer coordinates counts as it did: it is that of the restored features."""
    cache = teacher_cache.open(small_build(tmp_path, cache=OWN).path)
    made = []

    class Spied(loop.Stepper):
        def __init__(self, *given, **named):
            super().__init__(*given, **named)
            made.append(self)

    monkeypatch.setattr(loop, "Stepper", Spied)
    report = train(cache, tmp_path / "run", **PLAIN)
    first = losses(report)[0][1]
    part = next(Loader(cache, MODEL, trainer_config(**PLAIN), ALONE, live_teacher=False).epoch(0))[0]
    model = new_student(MODEL, MASKING, {"channels": 5, "views": 3}, seed=0).train()
    plan = model.plan(part.points, part.points_canonical, part.maps, part.draws)
    with torch.no_grad():
        output = model.losses(plan, model.network(plan, part.draws.drop_path))
    assert output["2d"].sum / (output["2d"].count * 8 / 5) == pytest.approx(first, rel=1e-5)
    # And what is differentiated is what is logged: a weight of 2 takes 2 back, to the bit.
    weights = []
    for settings, named in (({}, {}), ({"weight_2d": 2.0}, {"stands_for": 2.0}), ({}, {"stands_for": 2.0})):
        model = new_student(MODEL, MASKING, {"channels": 5, "views": 3}, seed=0)
        loop.Stepper(model, trainer_config(**PLAIN, **settings), ALONE, None, **named).step([part], 1e-3)
        weights.append(torch.cat([value.detach().reshape(-1) for value in model.parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_run_does_not_go_on_with_another_basis(tmp_path):
    cache = teacher_cache.open(small_build(tmp_path, cache=OWN).path)
    train(cache, tmp_path / "run", **PLAIN)
    other = teacher_cache.open(cache.path)
    other.basis = replace(cache.basis, components=-cache.basis.components)
    assert other.recipe.hash == cache.recipe.hash  # which does not tell the two apart
    with pytest.raises(CheckpointError, match=r"cache\.basis was '[0-9a-f]{64}', is now '[0-9a-f]{64}'"):
        train(other, tmp_path / "run", **PLAIN | {"epochs": 2})
