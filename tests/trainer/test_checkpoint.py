"""A checkpoint is whole or not there, and a damaged one says so."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.models import TINY, tiny_model
from tests.support.training import MASKING, train, trainer_config, weights_of
from trainer.checkpoints import files as checkpoint
from trainer.checkpoints.files import Header
from trainer.checkpoints.models import load_encoder, load_model, resume_problems, section_from_json, sections_of
from trainer.config import EvaluationConfig
from trainer.errors import CheckpointDamaged, CheckpointError


def _header(epoch: int, **changes: Any) -> Header:
    sections = sections_of(model=TINY, masking=MASKING, trainer=trainer_config(), evaluation=EvaluationConfig())
    content: dict[str, Any] = {"epoch": epoch, "step": 3 * epoch, "config": sections, "cache": {"recipe": "r"}}
    return Header(**{**content, "teacher": {"channels": 6, "views": 3}, **changes})


def _write(run_dir: Path, epoch: int) -> Path:
    model = tiny_model(seed=epoch)
    state = {"exp_avg/mask_token": torch.zeros(1, 24)}
    return checkpoint.write_checkpoint(run_dir, _header(epoch), model.state_dict(), state)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    return _write(tmp_path, 1)


def test_what_was_written_is_read_back(written: Path) -> None:
    header = checkpoint.read_header(written)
    assert (header.epoch, header.step) == (1, 3)
    assert section_from_json(type(TINY), header.config["model"]) == TINY
    tensors = checkpoint.read_tensors(written, header)
    expected = tiny_model(seed=1).state_dict()
    assert set(tensors) == set(expected)
    assert all(torch.equal(tensors[name], value) for name, value in expected.items())


def test_the_encoder_loads_from_a_checkpoint_its_folder_or_the_run_and_computes_the_same(written: Path) -> None:
    points = torch.randn(2, 64, 3, generator=torch.Generator().manual_seed(0))
    expected = tiny_model(seed=1).eval().encode(points)
    for path in (written, written.parent, written.parent.parent):
        encoder = load_encoder(path)
        assert not encoder.training
        assert torch.equal(encoder.encode(points), expected)


def test_only_complete_checkpoints_count(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path) is None
    for epoch in (2, 10, 9):
        _write(tmp_path, epoch)
    folder = tmp_path / "checkpoints"
    (folder / ".writing-epoch-0011-77").mkdir()
    (folder / ".removing-epoch-0001").mkdir()
    (folder / "epoch-0012").mkdir()  # no header: not one of ours
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == ["epoch-0002", "epoch-0009", "epoch-0010"]
    checkpoint.clean_leftovers(tmp_path)
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_pruning_keeps_the_newest_and_the_milestones(tmp_path: Path) -> None:
    for epoch in range(1, 8):
        _write(tmp_path, epoch)
    checkpoint.prune(tmp_path, keep=0, milestone_every=0)
    assert len(checkpoint.checkpoints(tmp_path)) == 7
    removed = checkpoint.prune(tmp_path, keep=2, milestone_every=3)
    assert [int(path.name[-4:]) for path in removed] == [1, 2, 4, 5]
    assert [int(path.name[-4:]) for path in checkpoint.checkpoints(tmp_path)] == [3, 6, 7]


def test_a_checkpoint_is_never_overwritten(written: Path) -> None:
    with pytest.raises(CheckpointError, match="epoch-0001 already exists, although this run has not written it"):
        _write(written.parent.parent, 1)


@pytest.mark.parametrize("name", [checkpoint.MODEL, checkpoint.OPTIMIZER])
@pytest.mark.parametrize("where", [0, 0.3, 0.999])
def test_a_flipped_bit_is_found(written: Path, name: str, where: float) -> None:
    file = written / name
    content = bytearray(file.read_bytes())
    content[int(where * len(content))] ^= 4
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"does not match its sha256 .* Remove .*epoch-0001 to resume from"):
        checkpoint.read_tensors(written, checkpoint.read_header(written), name)


def test_a_truncated_or_missing_file_is_named(written: Path) -> None:
    header = checkpoint.read_header(written)
    file = written / checkpoint.MODEL
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=rf"has {size - 1} bytes; checkpoint\.json says {size}\."):
        checkpoint.read_tensors(written, header)
    file.unlink()
    with pytest.raises(CheckpointError, match=r"model.safetensors cannot be read: No such file"):
        checkpoint.read_tensors(written, header)


def test_a_file_that_is_no_safetensors_is_refused_even_with_a_right_hash(written: Path) -> None:
    import hashlib

    blob = b"\x80\x04this is a pickle"
    (written / checkpoint.MODEL).write_bytes(blob)
    path = written / checkpoint.HEADER
    content = json.loads(path.read_text())
    del content["sha256"]  # as of a header that is whole, but odd
    content["files"][checkpoint.MODEL] = {"bytes": len(blob), "sha256": hashlib.sha256(blob).hexdigest()}
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="is not a safetensors file"):
        checkpoint.read_tensors(written, checkpoint.read_header(written))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda text: text[:40], "is not valid JSON"),
        (lambda text: "[" * 100_000, "is not valid JSON"),
        (lambda text: "[]", "is not marked as an i2p-checkpoint"),
        (lambda text: text.replace('"version": 1', '"version": 9'), "has version 9; this program reads version 1"),
        (lambda text: text.replace('"epoch": 1', '"epoch": "1"'), "epoch is '1', not of the expected type"),
        (lambda text: text.replace('"step"', '"steps"'), r"missing or unknown entries \['step', 'steps'\]"),
    ],
)
def test_a_damaged_header_is_described(written: Path, change: Any, text: str) -> None:
    path = written / checkpoint.HEADER
    content = json.loads(path.read_text())
    del content["sha256"]  # as of a header that is whole, but odd
    path.write_text(change(json.dumps(content)))
    with pytest.raises(CheckpointError, match=text):
        checkpoint.read_header(written)


def test_a_header_that_was_changed_is_damaged(written: Path) -> None:
    path = written / checkpoint.HEADER
    path.write_text(path.read_text().replace('"epoch": 1', '"epoch": 7'))
    with pytest.raises(CheckpointDamaged, match="does not match the sha256 it contains"):
        checkpoint.read_header(written)


def test_a_path_without_a_checkpoint_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is neither a checkpoint .* nor a run with a checkpoint"):
        load_model(tmp_path)


def test_settings_and_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    state = tiny_model().state_dict()
    settings = _header(1).config
    unknown = _header(1, config={**settings, "model": {**settings["model"], "colour": "red"}})
    path = checkpoint.write_checkpoint(tmp_path, unknown, state, {})
    with pytest.raises(CheckpointError, match="unknown settings colour of ModelConfig; they belong to another version"):
        load_model(path)
    wider = _header(2, config={**settings, "model": {**settings["model"], "mlp_ratio": 2.0}})
    path = checkpoint.write_checkpoint(tmp_path, wider, state, {})
    with pytest.raises(CheckpointError, match="its weights do not fit its settings"):
        load_model(path)


def test_the_optimiser_goes_out_and_comes_back(tmp_path: Path) -> None:
    def stepped() -> tuple[Any, dict[torch.Tensor, str]]:
        model = torch.nn.Linear(3, 2)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        return optimizer, {value: name for name, value in model.named_parameters()}

    (one, names), (other, other_names) = stepped(), stepped()
    flat = checkpoint.flatten_optimizer(one, names)
    assert sorted(flat) == sorted(
        f"{what}/{n}" for what in ("step", "exp_avg", "exp_avg_sq") for n in ("weight", "bias")
    )
    checkpoint.restore_optimizer(other, other_names, {k: v + 1 for k, v in flat.items()}, tmp_path)
    again = checkpoint.flatten_optimizer(other, other_names)
    assert all(torch.equal(again[name], value + 1) for name, value in flat.items())
    with pytest.raises(CheckpointError, match="exp_avg/nothing matches no parameter of this model"):
        checkpoint.restore_optimizer(one, names, {"exp_avg/nothing": torch.zeros(1)}, tmp_path)
    with pytest.raises(CheckpointError, match=r"exp_avg/bias has shape \[3\]; expected \[2\]"):
        checkpoint.restore_optimizer(one, names, {"exp_avg/bias": torch.zeros(3)}, tmp_path)


def test_only_settings_that_leave_the_course_alone_may_change() -> None:
    header = _header(2, cache={"recipe": "r", "records": 24})
    sections = {name: dict(section) for name, section in header.config.items()}
    cache, teacher = {"recipe": "r", "records": 24}, {"channels": 6, "views": 3}
    sections["trainer"] |= {"epochs": 9, "readers": 4, "device": "auto", "keep_checkpoints": 7}
    sections["evaluation"]["points"] = 64
    assert resume_problems(header, sections, cache, teacher) == []
    sections["trainer"] |= {"learning_rate": 0.5, "epochs": 1}
    sections["model"]["heads"] = 3
    assert resume_problems(header, sections, {"recipe": "s", "records": 30}, teacher) == [
        "cache.recipe was 'r', is now 's'",
        "cache.records was 24, is now 30",
        "model.heads was 2, is now 3",
        "trainer.learning_rate was 0.001, is now 0.5",
        "trainer.epochs is 1, but 2 epochs are already done",
    ]


def test_a_run_does_not_go_on_with_other_settings_or_from_a_damaged_checkpoint(cache: Any, tmp_path: Path) -> None:
    report = train(cache, tmp_path, epochs=1)
    with pytest.raises(CheckpointError, match=r"other settings:\n  trainer.batch_size was 8, is now 4\nUse the"):
        train(cache, tmp_path, epochs=2, batch_size=4)
    (report.checkpoint / checkpoint.HEADER).write_text('{"format": "i2p-checkpoint", "version": 9}')
    with pytest.raises(CheckpointError, match=r"has version 9; this program reads version 1"):
        train(cache, tmp_path, epochs=2)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize("name", [checkpoint.HEADER, checkpoint.MODEL, checkpoint.OPTIMIZER])
@pytest.mark.parametrize("damage", [Path.unlink, _cut, _zero])
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(
    cache: Any, tmp_path: Path, caplog: Any, name: str, damage: Any
) -> None:
    """The epochs after it are done again, and the run ends as it would have; the damaged folder is kept."""
    whole = train(cache, tmp_path / "whole", epochs=3, schedule_epochs=3)
    report = train(cache, tmp_path / "run", epochs=2, schedule_epochs=3)
    damage(report.checkpoint / name)
    again = train(cache, tmp_path / "run", epochs=3, schedule_epochs=3)
    assert again.resumed_from == 1
    assert weights_of(again) == weights_of(whole)
    assert f"{report.checkpoint / name}" in caplog.text
    assert "resumes from the checkpoint before it" in caplog.text
    aside = [path.name for path in report.checkpoint.parent.iterdir() if path.name.startswith("damaged-epoch-0002-")]
    assert len(aside) == 1


def test_a_run_without_a_sound_checkpoint_starts_anew(cache: Any, tmp_path: Path, caplog: Any) -> None:
    whole = train(cache, tmp_path / "whole", epochs=1)
    report = train(cache, tmp_path / "run", epochs=1)
    (report.checkpoint / checkpoint.HEADER).unlink()
    again = train(cache, tmp_path / "run", epochs=1)
    assert again.resumed_from == 0
    assert weights_of(again) == weights_of(whole)
    assert "the run resumes from the beginning, because no checkpoint is intact" in caplog.text


def test_what_is_no_leftover_of_ours_stays(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    other = tmp_path / "other"
    for path in (folder / ".writing-epoch-0001-77", folder / ".writing-notes", folder / ".removing-x", other):
        path.mkdir(parents=True)
    (other / "precious").write_text("x")
    (folder / ".removing-epoch-0001").symlink_to(other)
    checkpoint.clean_leftovers(tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == [".removing-epoch-0001", ".removing-x", ".writing-notes"]
    assert (other / "precious").read_text() == "x"
