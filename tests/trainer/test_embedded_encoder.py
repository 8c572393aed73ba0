"""The package's own encoder, and checkpoints slimmed to be handed on."""

import json
from pathlib import Path

import pytest
import torch

from cli.experiment.toml import ConfigError, load_experiment
from tests.support.commands import run
from trainer.checkpoints.files import EMBEDDED, find_checkpoint, read_header, read_tensors
from trainer.checkpoints.models import load_encoder, load_model
from trainer.checkpoints.reference.convert import export_reference, import_reference
from trainer.checkpoints.slim import slim_checkpoint
from trainer.config import EMBEDDED_POINTS
from trainer.errors import CheckpointError

SIZES = {"model": {"groups": (128, 64, 16), "neighbours": (16, 8, 8)}}  # what weights do not show
MOST_BYTES = 10 * 10**6  # of what every installation carries


def clouds(count: int = 3) -> torch.Tensor:
    points = torch.randn(count, 300, 3, generator=torch.Generator().manual_seed(5))
    return points / points.norm(dim=2).amax(dim=1)[:, None, None]


def test_it_is_sound_small_and_of_finite_features() -> None:
    header = read_header(EMBEDDED)
    assert set(header.files) == {"model.safetensors"}
    assert sum(file.stat().st_size for file in EMBEDDED.iterdir()) < MOST_BYTES
    encoder = load_encoder("embedded")
    assert not encoder.training
    features = encoder.encode(clouds())
    assert features.shape == (3, 1008)
    assert features.dtype == torch.float32
    assert features.isfinite().all()
    assert torch.equal(encoder.encode(clouds()[1:2])[0], features[1])


def test_the_settings_know_how_many_points_it_needs() -> None:
    assert load_encoder("embedded").config.groups[0] == EMBEDDED_POINTS
    assert load_experiment("quickstart").evaluation.embedded
    with pytest.raises(ConfigError, match=r"evaluation.points = 127 is less than the 128 that embedded = true needs"):
        load_experiment("quickstart", ["evaluation.points=127"])


def test_a_folder_of_that_name_is_named_with_a_dot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_checkpoint("embedded") == EMBEDDED
    with pytest.raises(CheckpointError, match="neither a checkpoint"):
        find_checkpoint("./embedded")


def test_a_command_scores_it(capsys: pytest.CaptureFixture[str]) -> None:
    corpora = [f"synthetic:?count=72&seed=3&split={split}" for split in ("train", "test")]
    outcome = run(
        capsys, "evaluate", "embedded", "--train", corpora[0], "--test", corpora[1], "--points", 256, "--seeds", 1,
        "--embedded", "--device", "cpu", "--json",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    rows = json.loads(outcome.out)["rows"]
    assert set(rows) == {"coordinates", "untrained", "embedded", "trained"}
    assert rows["embedded"] == rows["trained"]
    assert rows["embedded"]["accuracy"] > rows["untrained"]["accuracy"]


def test_a_slim_checkpoint_is_the_model_to_half_precision(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = run(capsys, "checkpoint", "slim", "embedded", "--out", tmp_path / "small", "--half")
    assert outcome.code == 0, outcome.err
    assert (
        read_tensors(tmp_path / "small", read_header(tmp_path / "small")).keys()
        == load_encoder("embedded").state_dict().keys()
    )
    kept, header = load_model(tmp_path / "small")
    assert torch.equal(kept.encode(clouds()), load_encoder("embedded").encode(clouds()))  # rounded already
    assert header.kind == "pretraining"
    with pytest.raises(CheckpointError, match="already exists"):
        slim_checkpoint("embedded", tmp_path / "small")


def test_it_is_exported_in_float32(tmp_path: Path) -> None:
    export_reference("embedded", tmp_path / "out.pth")
    back = import_reference(tmp_path / "out.pth", tmp_path / "back", settings=SIZES)
    weights, own = (read_tensors(path, read_header(path)) for path in (back.path, EMBEDDED))
    assert all(torch.equal(value, own[name].float()) for name, value in weights.items() if value.is_floating_point())
    assert {value.dtype for value in weights.values()} == {torch.float32, torch.int64}


def test_weights_that_half_precision_cannot_hold_are_named(tmp_path: Path) -> None:
    from trainer.checkpoints.slim import _rounded

    assert _rounded("fine", torch.tensor([1.0, 1e-9])).dtype == torch.float16
    assert _rounded("counter", torch.tensor(7)).dtype == torch.int64
    with pytest.raises(CheckpointError, match=r"large has values beyond float16"):
        _rounded("large", torch.tensor([1.0, 7e4]))
