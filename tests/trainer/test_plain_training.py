"""The plain student through the loop, checkpoints, evaluation and fine-tuning that all students share."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.commands import run as i2p
from tests.support.plain_student import PLAIN, RELATIVES, plain_student
from tests.support.training import MASKING, clouds, train
from trainer.checkpoints import files as checkpoint
from trainer.checkpoints.files import find_checkpoint, read_header, read_tensors
from trainer.checkpoints.models import load_encoder, load_fine_tuned, load_model
from trainer.checkpoints.transfer import load_pretrained_encoder
from trainer.config import AlignmentConfig
from trainer.engine.events import StepDone
from trainer.models.config import MaskingConfig, PlainConfig
from trainer.models.heads.build import new_classifier, new_segmenter
from trainer.models.heads.config import PlainClassifierConfig, PlainSegmentationConfig
from trainer.models.plain.student import PlainStudent

MODEL = replace(PLAIN, depth=2, decoder_depth=1)
HEAD = PlainClassifierConfig(classes=3, groups=11, neighbours=5, hidden=(9,), dropout=0.1)
PARTS = PlainSegmentationConfig(
    parts=5, categories=2, groups=9, neighbours=6, taps=(0, 2), embedding=4, propagation=(10, 8), hidden=(7, 6)
)


class Stopped(Exception):
    pass


def stop_after_four(event: Any) -> None:
    if isinstance(event, StepDone) and event.step == 4:
        raise Stopped


@pytest.mark.parametrize(("targets", "weight"), [("both", 0.5), ("3d", 0.0)])
def test_a_stopped_run_goes_on_to_the_same_bytes(cache: Any, tmp_path: Path, targets: Any, weight: float) -> None:
    chosen: Any = {"model": replace(MODEL, targets=targets), "epochs": 2, "checkpoint_steps": 1, "accumulation": 2}
    chosen["alignment"] = AlignmentConfig(weight=weight)
    whole = train(cache, tmp_path / "whole", **chosen)
    with pytest.raises(Stopped):
        train(cache, tmp_path / "run", **chosen, on_event=stop_after_four)
    again = train(cache, tmp_path / "run", **chosen)
    for name in (checkpoint.MODEL, checkpoint.OPTIMIZER, checkpoint.HEADER):
        assert (again.checkpoint / name).read_bytes() == (whole.checkpoint / name).read_bytes(), name
    lines = [json.loads(line) for line in (tmp_path / "run" / "train.jsonl").read_text().splitlines()]
    step = next(line for line in lines if line["event"] == "step")
    assert step["loss_3d"] > 0
    assert (step["loss_2d"] > 0) == (targets == "both")
    assert (step.get("loss_global", 0) > 0) == (weight > 0)
    model, header = load_model(tmp_path / "run")
    assert isinstance(model, PlainStudent)
    assert (model.config, model.masking) == (chosen["model"], MASKING)
    assert header.config["model"]["architecture"] == "plain"
    assert load_encoder(tmp_path / "run").encode(torch.rand(2, 40, 3)).shape == (2, 90)


def test_it_learns(cache: Any, tmp_path: Path) -> None:
    whole = train(cache, tmp_path / "whole", model=MODEL, epochs=6, learning_rate=3e-3)
    assert whole.metrics["loss_3d"] < 0.8 * first_loss(tmp_path / "whole")


def first_loss(run: Path) -> float:
    lines = [json.loads(line) for line in (run / "train.jsonl").read_text().splitlines()]
    return float(next(line["loss_3d"] for line in lines if line["event"] == "step"))


def entries_of(relative: str) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in plain_student(seed=7, **RELATIVES[relative]).state_dict().items()}


@pytest.mark.parametrize("relative", RELATIVES)
@pytest.mark.parametrize("kind", ["classifier", "segmenter"])
def test_the_encoder_is_taken_over_whole_and_the_head_is_new(relative: str, kind: str) -> None:
    config = replace(PLAIN, **RELATIVES[relative])
    pooling: Any = "mean" if relative == "Point-FEMAE" else "joined"
    tuned: Any = new_classifier(config, replace(HEAD, pooling=pooling))
    if kind == "segmenter":
        tuned = new_segmenter(config, PARTS)
    before = {name: value.clone() for name, value in tuned.state_dict().items()}
    entries = entries_of(relative)
    entries = {name: value + 1 if value.dtype == torch.float32 else value for name, value in entries.items()}
    found = load_pretrained_encoder(tuned, entries, source="it")
    for name, value in tuned.state_dict().items():
        theirs = f"MAE_encoder.{name}"
        assert torch.equal(value, entries[theirs] if name in found.loaded else before[name]), name
        assert (theirs in entries) == (name in found.loaded), name
    new = {name for name in found.kept if not tuned.in_head(name)}
    assert new == set()
    fresh = {"cls_token", "cls_pos"} & set(found.kept)
    assert fresh == (
        {"cls_token", "cls_pos"} if kind == "classifier" and relative in ("Point-MAE", "PCP-MAE") else set()
    )
    left = {name for name in found.unused if name.startswith("MAE_encoder.")}
    in_front = {"MAE_encoder.cls_token", "MAE_encoder.cls_pos"}
    assert left == (in_front if kind == "segmenter" and relative in ("Point-BERT", "ACT") else set())
    again: Any = (
        new_classifier(config, replace(HEAD, pooling=pooling)) if kind == "classifier" else new_segmenter(config, PARTS)
    )
    load_pretrained_encoder(again, tuned.state_dict(), source="a fine-tuned one")
    for name, value in again.state_dict().items():
        if not again.in_head(name) or name.startswith("cls_token"):
            assert torch.equal(value, tuned.state_dict()[name]), name


@pytest.mark.parametrize("relative", ["Point-MAE", "Point-BERT"])
def test_the_head_of_levels_sees_the_students_own_feature(relative: str) -> None:
    model = plain_student(seed=7, **RELATIVES[relative]).eval()
    head = PlainClassifierConfig(classes=3, hidden=(), pooling="levels")
    tuned: Any = new_classifier(model.config, head).eval()
    load_pretrained_encoder(tuned, model.state_dict(), source="the student")
    points = torch.from_numpy(clouds(4, points=50, seed=1))
    with torch.no_grad():
        found = tuned.pooled(tuned.plan(points))
        torch.testing.assert_close(found, model.encode(points, "levels"), rtol=1e-5, atol=1e-6)
    assert found.shape == (4, tuned.feature_width)


def test_another_encoder_is_refused_with_its_names() -> None:
    tuned = new_classifier(PLAIN, HEAD)
    before = {name: value.clone() for name, value in tuned.state_dict().items()}
    for relative, words in (("Point-FEMAE", "unexpected MAE_encoder.blocks.blocks.0.cls"), ("PCP-MAE", "has shape")):
        with pytest.raises(ValueError, match=words):
            load_pretrained_encoder(tuned, entries_of(relative), source="it")
    with pytest.raises(ValueError, match=r"missing MAE_encoder\.norm\.bias"):
        load_pretrained_encoder(
            tuned, {k: v for k, v in entries_of("Point-MAE").items() if k != "MAE_encoder.norm.bias"}, source="it"
        )
    assert all(torch.equal(value, before[name]) for name, value in tuned.state_dict().items())


@pytest.mark.parametrize("relative", ["Point-MAE", "ReCon", "Point-FEMAE"])
def test_heads_answer_and_every_weight_learns(relative: str) -> None:
    config = replace(PLAIN, drop_path=0.0, **RELATIVES[relative])
    points = torch.from_numpy(clouds(4, points=50, seed=1))
    classifier: Any = new_classifier(
        config, replace(HEAD, dropout=0.0, pooling="mean" if relative == "Point-FEMAE" else "joined")
    )
    classifier(points).square().sum().backward()
    segmenter: Any = new_segmenter(config, replace(PARTS, dropout=0.0))
    log_probs = segmenter(points, torch.tensor([0, 1, 1, 0]))
    assert log_probs.shape == (4, 50, 5)
    torch.testing.assert_close(log_probs.exp().sum(2), torch.ones(4, 50))
    log_probs.square().sum().backward()
    for model in (classifier, segmenter):
        for name, value in model.named_parameters():
            assert value.grad is not None, name
    segmenter.eval()
    with torch.no_grad():
        one = segmenter(points[1:2], torch.tensor([1]))
        torch.testing.assert_close(one, segmenter(points, torch.tensor([0, 1, 1, 0]))[1:2], rtol=0, atol=1e-5)
        assert (segmenter(points[1:2], torch.tensor([0])) - one).abs().max() > 1e-6  # the category counts
    with pytest.raises(ValueError, match="category has shape"):
        segmenter(points, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"taps = \(0, 3\) are not all of the blocks 0\.\.2"):
        new_segmenter(config, replace(PARTS, taps=(0, 3)))


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three kinds of shapes, 30 to train on and 18 to test on."""
    path: Path = tmp_path_factory.mktemp("labelled") / "set.npz"
    points, label = clouds(48, points=64, seed=2), np.arange(48) % 3
    points[np.arange(48), :, label] *= 0.25
    split = np.array(["train"] * 30 + ["test"] * 18)
    np.savez(path, points=points, label=label, label_names=np.array(["flat", "thin", "low"]), split=split)
    return path


RECIPE = """
[model]
architecture = "plain"
[classifier]
classes = 3
groups = 12
hidden = [8]
[finetune]
train = "npz:{path}?split=train"
test = "npz:{path}?split=test"
stored_points = 64
points = 48
pool = 56
epochs = 2
warmup_epochs = 1
batch_size = 8
tensorboard = false
device = "cpu"
"""


def test_commands_take_it_as_they_take_the_other(
    cache: Any, tmp_path: Path, labelled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, recipe = tmp_path / "run", tmp_path / "recipe.toml"
    train(cache, run, model=MODEL, epochs=1)
    recipe.write_text(RECIPE.format(path=labelled))
    for protocol in ("full", "linear"):
        out = tmp_path / protocol
        done = i2p(capsys, "finetune", recipe, "--from", run, "--protocol", protocol, "--out", out)
        assert done.code == 0, done.err
        found, of_run = (read_tensors(at, read_header(at)) for at in map(find_checkpoint, (out / "seed-0", run)))
        name = "blocks.blocks.0.mlp.fc1.bias"
        assert torch.equal(found[name], of_run[f"MAE_encoder.{name}"]) == (protocol == "linear")
    tuned, _ = load_fine_tuned(tmp_path / "full" / "seed-0")
    assert tuned.config.groups == 12
    seed = tmp_path / "full" / "seed-0"
    done = i2p(capsys, "vote", seed, "--draws", 2, "--rounds", 2, "--device", "cpu")
    assert done.code == 0, done.err
    for encoder, width in ((run, 90), (seed, 60)):
        out = tmp_path / f"{encoder.name}.npz"
        uri = f"npz:{labelled}?split=test"
        done = i2p(capsys, "embed", encoder, uri, "--out", out, "--points", 48, "--device", "cpu")
        assert done.code == 0, done.err
        assert np.load(out)["features"].shape == (18, width)
    few = ["--train", f"npz:{labelled}?split=train", "--way", 2, "--shot", 3, "--queries", 3, "--folds", 2]
    done = i2p(capsys, "fewshot", run, *few, "--points", 48, "--stored-points", 64, "--device", "cpu")
    assert done.code == 0, done.err
    wrong = i2p(capsys, "finetune", "synthetic", "--from", run, "--out", tmp_path / "other")
    assert wrong.code == 2
    assert "is plain; recipes for it begin with plain-" in wrong.err


def test_a_batch_norm_and_a_mask_are_the_only_state_that_pretraining_has_beside_weights() -> None:
    names = [name for name, _ in PlainStudent(PlainConfig(), MaskingConfig(), teacher_channels=2).named_buffers()]
    assert {name.rpartition(".")[2] for name in names} == {"running_mean", "running_var", "num_batches_tracked"}
