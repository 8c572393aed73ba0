"""Runs with the global loss: what they say, how they go on, and what they need of a cache."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import teacher_cache
from tests.support.training import MASKING, SCHEMA, train, training_cache, weights_of
from trainer.checkpoints import files as checkpoint
from trainer.checkpoints.models import load_encoder, load_model
from trainer.checkpoints.reference.convert import export_reference
from trainer.config import AlignmentConfig
from trainer.engine.events import StepDone
from trainer.engine.ranks import Ranks
from trainer.errors import CheckpointError, TrainingError
from trainer.models.config import MaskingConfig
from trainer.models.random_inputs import Draws
from trainer.pretraining.alignment import Alignment
from trainer.pretraining.data import Part
from trainer.pretraining.step import _GlobalLoss

ON = AlignmentConfig(weight=0.7)
ALONE = Ranks(rank=0, size=1, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def whole_cache(tmp_path_factory: pytest.TempPathFactory) -> teacher_cache.Cache:
    return training_cache(tmp_path_factory.mktemp("whole") / "cache", class_token="float16")


def _lines(run_dir: Path, event: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run_dir / "train.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == event]


class Stopped(Exception):
    pass


@pytest.mark.parametrize("masking", [MASKING, replace(MASKING, per_shape=2)])
@pytest.mark.parametrize(("negatives", "settings"), [(0, {}), (9, {"precision": "bfloat16", "readers": 0})])
def test_a_run_stopped_within_an_epoch_ends_with_the_same_bytes(
    whole_cache: Any, tmp_path: Path, negatives: int, settings: dict[str, Any], masking: MaskingConfig
) -> None:
    chosen = {"alignment": replace(ON, negatives=negatives), "epochs": 3, "checkpoint_steps": 1, **settings}
    chosen["masking"] = masking
    whole = train(whole_cache, tmp_path / "whole", **chosen)

    def stop(event: Any) -> None:
        if isinstance(event, StepDone) and event.step == 5:
            raise Stopped

    with pytest.raises(Stopped):
        train(whole_cache, tmp_path / "run", **chosen, on_event=stop)
    found = checkpoint.latest(tmp_path / "run")
    assert found is not None
    assert found.name == "epoch-0001-step-000004"
    under_way = checkpoint.read_header(found).under_way
    assert under_way is not None
    assert len(under_way["totals"]) == 4
    again = train(whole_cache, tmp_path / "run", **chosen)
    for name in (checkpoint.MODEL, checkpoint.OPTIMIZER, checkpoint.HEADER):
        assert (again.checkpoint / name).read_bytes() == (whole.checkpoint / name).read_bytes(), name
    assert again.metrics == whole.metrics
    assert again.metrics["loss_global"] > 0
    assert all(line["loss_global"] > 0 for line in _lines(tmp_path / "run", "step"))


def test_the_loss_falls_and_the_encoder_is_another(whole_cache: Any, tmp_path: Path) -> None:
    on = train(whole_cache, tmp_path / "on", epochs=8, schedule_epochs=8, alignment=replace(ON, weight=1.0))
    off = train(whole_cache, tmp_path / "off", epochs=8, schedule_epochs=8)
    losses = [line["loss_global"] for line in _lines(tmp_path / "on", "epoch")]
    assert losses[-1] < losses[0] - 0.05
    assert "loss_global" not in off.metrics
    assert {line["loss_global"] for line in _lines(tmp_path / "off", "step")} == {0.0}
    points = torch.rand(2, 96, 3)
    assert not torch.equal(load_encoder(on.run_dir).encode(points), load_encoder(off.run_dir).encode(points))
    assert _lines(tmp_path / "on", "start")[0]["global_target"] == "class token"
    assert json.loads((tmp_path / "on" / "metrics.json").read_text())["global_target"] == "class token"
    assert "global_target" not in json.loads((tmp_path / "off" / "metrics.json").read_text())


def test_a_weight_of_nothing_is_a_run_without(whole_cache: Any, tmp_path: Path) -> None:
    off = train(whole_cache, tmp_path / "off", epochs=1)
    zero = train(whole_cache, tmp_path / "zero", epochs=1, alignment=AlignmentConfig(weight=0.0))
    assert weights_of(zero) == weights_of(off)
    assert not [name for name in load_model(off.run_dir)[0].state_dict() if name.startswith("align_head")]


def test_an_older_cache_trains_with_what_stands_in_and_says_so(tmp_path: Path, caplog: Any) -> None:
    cache = training_cache(tmp_path / "cache")
    report = train(cache, tmp_path / "run", epochs=1, alignment=ON)
    said = "mean of the patch features that lookups read"
    assert said in caplog.text
    assert _lines(tmp_path / "run", "start")[0]["global_target"] == said
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["global_target"] == said
    assert report.metrics["loss_global"] > 0


def test_checkpoints_of_runs_before_the_loss_load_and_go_on(whole_cache: Any, tmp_path: Path) -> None:
    whole = train(whole_cache, tmp_path / "whole", epochs=2)
    first = train(whole_cache, tmp_path / "old", epochs=1)
    header = checkpoint.read_header(first.checkpoint)
    tensors = [
        checkpoint.read_tensors(first.checkpoint, header, name) for name in (checkpoint.MODEL, checkpoint.OPTIMIZER)
    ]
    off = asdict(AlignmentConfig())
    assert off.pop("contrast") == "joined"  # came later
    assert header.config.pop("alignment") == off
    for file in first.checkpoint.iterdir():
        file.unlink()
    first.checkpoint.rmdir()
    checkpoint.write_checkpoint(tmp_path / "old", header, *tensors)
    assert load_encoder(tmp_path / "old").encode(torch.rand(1, 96, 3)).shape[0] == 1
    assert weights_of(train(whole_cache, tmp_path / "old", epochs=2)) == weights_of(whole)
    views = train(whole_cache, tmp_path / "views", epochs=1, alignment=replace(ON, contrast="views"))
    assert checkpoint.read_header(views.checkpoint).config["alignment"]["contrast"] == "views"
    with pytest.raises(CheckpointError, match=r"alignment\.contrast was 'views', is now absent"):
        train(whole_cache, tmp_path / "views", epochs=2, alignment=ON)
    with pytest.raises(CheckpointError, match=r"alignment\.weight was 0\.0, is now 0\.7"):
        train(whole_cache, tmp_path / "old", epochs=2, alignment=ON)
    with pytest.raises(CheckpointError, match=r"masking\.per_shape was absent, is now 2"):
        train(whole_cache, tmp_path / "old", epochs=2, masking=replace(MASKING, per_shape=2))


@pytest.mark.parametrize("contrast", ["joined", "views"])
@pytest.mark.parametrize(("parts", "masks"), [(1, 1), (2, 1), (3, 1), (2, 2)])
def test_parts_of_a_batch_add_up_to_its_loss(parts: int, masks: int, contrast: Any) -> None:
    """Each of a shape's masks is contrasted with every target once: the mean of the losses of one mask."""
    generator = torch.Generator().manual_seed(3)
    wholes = torch.randn(6, 3, 5, generator=generator)
    wholes[2] = wholes[5]
    mean = torch.randn(3, 5, generator=generator)
    answers = torch.randn(6, masks, 15, generator=generator)
    alignment = Alignment(replace(ON, temperature=0.2, contrast=contrast), mean, None, "")
    pieces = [
        Part([], rows.numpy(), torch.empty(0), torch.empty(0), None, draws, 0, wholes[rows], rows.numpy())
        for rows in torch.arange(6).chunk(parts)
        for draws in [Draws(torch.empty(len(rows) * masks, 0), torch.empty(len(rows) * masks, 0))]
    ]
    whole = _GlobalLoss(alignment, ALONE, pieces)
    terms = [whole.term(i, part.flatten(0, 1)) for i, part in enumerate(answers.chunk(parts))]
    one = Draws(torch.empty(6, 0), torch.empty(6, 0))
    all_of_it = pieces[0]._replace(records=np.arange(6), whole=wholes, shapes=np.arange(6), draws=one)
    expected = [_GlobalLoss(alignment, ALONE, [all_of_it]).term(0, answers[:, m]) for m in range(masks)]
    torch.testing.assert_close(torch.stack([term.sum for term in terms]).sum(), sum(term.sum for term in expected))
    assert sum(term.count.item() for term in terms) == whole.count.item() == 6 * masks


def test_a_batch_of_one_is_refused_without_a_sample(whole_cache: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"batch_size = 1: a batch of one shape has no negatives.* set alignment.neg"):
        train(whole_cache, tmp_path, epochs=1, batch_size=1, alignment=ON)
    report = train(whole_cache, tmp_path, epochs=1, batch_size=1, alignment=replace(ON, negatives=4))
    assert report.metrics["loss_global"] > 0


def test_settings_that_mean_nothing_are_refused() -> None:
    config = AlignmentConfig(weight=-1.0, temperature=0.0, negatives=-2)
    assert list(config.problems()) == [
        "weight = -1.0 is negative",
        "temperature = 0.0 is not positive",
        "negatives = -2 is negative",
    ]
    assert list(AlignmentConfig(weight=float("nan")).problems()) == ["weight = nan is not a number"]


@pytest.mark.parametrize("stored", [{}, {"class_token": "float16"}])
def test_damaged_records_are_left_out_of_mean_and_sample_or_raise(tmp_path: Path, stored: dict[str, str]) -> None:
    cache = training_cache(tmp_path / "cache", 24, **stored)
    name = "class/c.1.0.0" if stored else "features/c.1.0.0.0"
    (tmp_path / "cache" / name).unlink()
    config = replace(ON, negatives=24)
    reopened = teacher_cache.open(tmp_path / "cache")
    with pytest.raises(teacher_cache.ShardDamaged):
        Alignment.of_cache(config, reopened, seed=0, device=ALONE.device, skip_damaged=False)
    found = Alignment.of_cache(config, reopened, seed=0, device=ALONE.device, skip_damaged=True)
    assert found.fixed is not None
    assert found.fixed.shapes.tolist() == [*range(8), *range(16, 24)]
    assert len(cache) == 24
    for file in (tmp_path / "cache" / name).parent.glob("c.*"):
        file.unlink()
    with pytest.raises(TrainingError, match="no record of the cache can be read"):
        Alignment.of_cache(
            config, teacher_cache.open(tmp_path / "cache"), seed=0, device=ALONE.device, skip_damaged=True
        )


def test_an_export_leaves_the_head_out(whole_cache: Any, tmp_path: Path) -> None:
    report = train(whole_cache, tmp_path / "run", epochs=1, alignment=ON)
    done = export_reference(report.checkpoint, tmp_path / "out.pth")
    state = torch.load(tmp_path / "out.pth", weights_only=True)["base_model"]
    assert not [name for name in state if "align" in name]
    assert any("without the head of the global loss" in note for note in done.notes)


def test_the_cache_of_a_live_run_gives_its_global_targets(whole_cache: Any) -> None:
    from tests.support.training import MODEL, trainer_config
    from trainer.pretraining.data import Loader

    loader = Loader(whole_cache, MODEL, trainer_config(readers=0), ALONE, live_teacher=True, whole=True)
    (part,) = next(loader.epoch(0))
    assert part.maps is None
    assert part.whole is not None
    assert part.whole.shape == (8, *SCHEMA.class_shape)
    np.testing.assert_array_equal(part.whole.numpy(), whole_cache.class_tokens(part.records))
