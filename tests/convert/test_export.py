"""Checkpoints of our own training, written so that the reference's users can load them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.convert import assert_equal_content, entries_of, optimizer_state, tiny_clip, write_file
from tests.support.finetune import tiny_classifier
from tests.support.models import TINY, TINY_CHANNELS, tiny_model
from tests.support.training import trainer_config
from trainer.checkpoints.files import OPTIMIZER, Header, flatten_optimizer, read_tensors, write_checkpoint
from trainer.checkpoints.models import load_model, sections_of
from trainer.checkpoints.reference.convert import export_reference, import_reference
from trainer.engine.optimiser import build_optimizer
from trainer.errors import CheckpointError
from trainer.models.config import MaskingConfig
from trainer.models.hierarchical.student import I2PMAE

STATED = {"model": {"groups": TINY.groups, "neighbours": TINY.neighbours, "heads": TINY.heads}}


def _trained(run_dir: Path, model: I2PMAE, **header: Any) -> Path:
    """A checkpoint as the training loop writes it, after one step of AdamW with made-up gradients."""
    config = trainer_config()
    optimizer = build_optimizer(model, config)
    generator = torch.Generator().manual_seed(2)
    for value in model.parameters():
        value.grad = torch.randn(value.shape, generator=generator) if value.requires_grad else None
    optimizer.step()
    both = model.config.targets != "3d"
    facts: dict[str, Any] = {
        "epoch": 3,
        "step": 9,
        "config": sections_of(model=model.config, masking=model.masking, trainer=config),
        "cache": {"recipe": "r", "records": 24},
        "teacher": {"channels": TINY_CHANNELS if both else 0, "views": 3 if both else 0},
        "metrics": {"loss_3d": 0.1, "learning_rate": 5e-4},
    }
    names = {value: name for name, value in model.named_parameters()}
    return write_checkpoint(
        run_dir, Header(**{**facts, **header}), model.state_dict(), flatten_optimizer(optimizer, names)
    )


def _load(path: Path) -> dict[str, Any]:
    return torch.load(path, map_location="cpu", weights_only=True)


def test_our_student_goes_out_and_comes_back_bit_for_bit(tmp_path):
    model = tiny_model(seed=3)
    checkpoint = _trained(tmp_path / "run", model)
    torch.save(tiny_clip(TINY_CHANNELS), tmp_path / "clip.pt")
    exported = export_reference(tmp_path / "run", tmp_path / "out.pth", teacher=tmp_path / "clip.pt")
    content = _load(tmp_path / "out.pth")
    assert list(content) == ["base_model", "epoch", "metrics", "best_metrics", "optimizer"]
    assert content["epoch"] == 2  # the reference counts from 0
    frozen = {f"module.clip_model.{name}": value for name, value in tiny_clip(TINY_CHANNELS).items()}
    assert_equal_content(content["base_model"], type(entries_of(model))({**entries_of(model), **frozen}))
    converted = import_reference(tmp_path / "out.pth", tmp_path / "back", settings=STATED)
    for name in ("model.safetensors", OPTIMIZER):
        assert (tmp_path / "back" / name).read_bytes() == (checkpoint / name).read_bytes()
    assert converted.header.epoch == 3
    loaded = load_model(tmp_path / "back")[0]
    assert torch.equal(loaded.mask_token, model.mask_token)
    assert any("it was not measured" in note for note in exported.notes)


def test_the_references_optimiser_would_take_the_state(tmp_path):
    """Torch's own AdamW over the parameters grouped as the reference groups them, the teacher's among them."""
    model = tiny_model()
    _trained(tmp_path / "run", model)
    torch.save(tiny_clip(TINY_CHANNELS), tmp_path / "clip.pt")
    export_reference(tmp_path / "run", tmp_path / "out.pth", teacher=tmp_path / "clip.pt")
    content = _load(tmp_path / "out.pth")
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    named = {
        name.removeprefix("module."): torch.nn.Parameter(value.float())
        for name, value in content["base_model"].items()
        if not name.endswith(buffers)
    }
    spared = [name for name, value in named.items() if value.ndim == 1 or "token" in name or name.endswith(".bias")]
    decayed = [name for name in named if name not in spared]
    optimizer = torch.optim.AdamW(
        [
            {"params": [named[name] for name in spared], "weight_decay": 0.0},
            {"params": [named[name] for name in decayed], "weight_decay": 0.05},
        ],
        lr=1e-3,
    )
    optimizer.load_state_dict(content["optimizer"])
    assert optimizer.param_groups[0]["lr"] == 5e-4
    assert optimizer.param_groups[1]["initial_lr"] == trainer_config().learning_rate
    header = load_model(tmp_path / "run")[1]
    flat = read_tensors(tmp_path / "run" / "checkpoints" / "epoch-0003", header, OPTIMIZER)
    for name, value in named.items():
        state = optimizer.state.get(value, {})
        assert set(state) == ({"exp_avg", "exp_avg_sq", "step"} if f"exp_avg/{name}" in flat else set())
        assert all(torch.equal(state[what], flat[f"{what}/{name}"]) for what in state)
    trained = [name for name, value in model.named_parameters() if value.requires_grad]
    assert {key.partition("/")[2] for key in flat} == set(trained)


def test_without_the_teacher_the_optimiser_stays_behind_and_it_is_said(tmp_path):
    _trained(tmp_path / "run", tiny_model())
    exported = export_reference(tmp_path / "run", tmp_path / "out.pth")
    content = _load(tmp_path / "out.pth")
    assert "optimizer" not in content
    assert not any("clip_model" in name for name in content["base_model"])
    assert "without the teacher (clip_model.): enough to fine-tune from, but not to resume pre-training" in (
        exported.notes
    )
    assert "without the optimiser's state, whose order includes the teacher's parameters" in exported.notes


def test_a_3d_student_goes_out_as_point_m2ae_with_its_optimiser(tmp_path):
    model = tiny_model(targets="3d", masking=MaskingConfig(mode="random"))
    checkpoint = _trained(tmp_path / "run", model)
    export_reference(checkpoint, tmp_path / "out.pth")
    content = _load(tmp_path / "out.pth")
    assert [name for name in content["base_model"] if "rec_head" in name] == [
        "module.rec_head.weight", "module.rec_head.bias"
    ]  # fmt: skip
    import_reference(tmp_path / "out.pth", tmp_path / "back", settings=STATED)
    for name in ("model.safetensors", OPTIMIZER):
        assert (tmp_path / "back" / name).read_bytes() == (checkpoint / name).read_bytes()


def test_an_optimisers_state_survives_in_and_out(tmp_path):
    model = tiny_model(targets="3d", masking=MaskingConfig(mode="random"))
    write_file(tmp_path / "in.pth", entries_of(model), optimizer=optimizer_state(model))
    import_reference(tmp_path / "in.pth", tmp_path / "checkpoint", settings=STATED)
    export_reference(tmp_path / "checkpoint", tmp_path / "out.pth")
    assert_equal_content(_load(tmp_path / "out.pth"), _load(tmp_path / "in.pth"))


def test_names_are_written_with_or_without_the_prefix(tmp_path):
    checkpoint = _trained(tmp_path / "run", tiny_model())
    names = list(tiny_model().state_dict())
    for given, before in ((None, "module."), (True, "module."), (False, "")):
        path = tmp_path / f"{given}.pth"
        export_reference(checkpoint, path, prefix=given)
        assert list(_load(path)["base_model"]) == [before + name for name in names]


def test_a_classifier_goes_out_as_it_came(tmp_path):
    classifier = tiny_classifier()
    write_file(tmp_path / "in.pth", entries_of(classifier), optimizer=optimizer_state(classifier))
    stated = {"model": {"groups": TINY.groups, "heads": TINY.heads}}
    import_reference(tmp_path / "in.pth", tmp_path / "checkpoint", settings=stated)
    export_reference(tmp_path / "checkpoint", tmp_path / "out.pth")
    assert_equal_content(_load(tmp_path / "out.pth"), _load(tmp_path / "in.pth"))
    torch.save(tiny_clip(6), tmp_path / "clip.pt")
    with pytest.raises(CheckpointError, match="for a classifier model without a 2D head; the reference has none"):
        export_reference(tmp_path / "checkpoint", tmp_path / "second.pth", teacher=tmp_path / "clip.pt")


def test_settings_the_reference_has_no_switch_for_are_named(tmp_path):
    checkpoint = _trained(tmp_path / "run", tiny_model())
    [note] = [
        note
        for note in export_reference(checkpoint, tmp_path / "out.pth").notes
        if "other values of these settings" in note
    ]
    for setting in ("batch_norm_groups = 'visible'", "fps_skip_near_origin = False", "interpolation = 'direct'"):
        assert f"model.{setting}" in note
    assert "merge_input" not in note


def test_what_the_reference_has_no_model_for_is_refused(tmp_path):
    checkpoint = _trained(tmp_path / "run", tiny_model(targets="2d"))
    with pytest.raises(
        CheckpointError, match=r"has no counterpart in the reference.* = '2d': the reference always has"
    ):
        export_reference(checkpoint, tmp_path / "out.pth")
    assert not (tmp_path / "out.pth").exists()


def test_a_head_that_the_reference_does_not_have_is_refused(tmp_path):
    classifier = tiny_classifier(pooling="levels")
    facts = {"epoch": 1, "step": 3, "cache": {}, "teacher": {}, "metrics": {}}
    sections = sections_of(model=classifier.model, classifier=classifier.config)
    checkpoint = write_checkpoint(
        tmp_path / "run", Header(kind="classifier", config=sections, **facts), classifier.state_dict(), {}
    )
    with pytest.raises(CheckpointError, match=r"classifier.pooling = 'levels': the reference's head sees another"):
        export_reference(checkpoint, tmp_path / "out.pth")
    assert not (tmp_path / "out.pth").exists()


def test_a_teacher_of_another_width_is_refused(tmp_path):
    checkpoint = _trained(tmp_path / "run", tiny_model())
    torch.save(tiny_clip(TINY_CHANNELS + 1), tmp_path / "clip.pt")
    with pytest.raises(
        CheckpointError, match=r"is a teacher of 7 channels; the model was trained with 6. Give the CLIP"
    ):
        export_reference(checkpoint, tmp_path / "out.pth", teacher=tmp_path / "clip.pt")
    assert not (tmp_path / "out.pth").exists()


def test_a_checkpoint_whose_settings_were_altered_is_refused(tmp_path):
    checkpoint = _trained(tmp_path / "run", tiny_model())
    header = json.loads((checkpoint / "checkpoint.json").read_text())
    del header["sha256"]
    header["config"]["model"]["mlp_ratio"] = 2.0
    (checkpoint / "checkpoint.json").write_text(json.dumps(header))
    with pytest.raises(CheckpointError, match=r"its weights do not fit its settings: \d+ of another shape: h_encoder"):
        export_reference(checkpoint, tmp_path / "out.pth")


def test_an_existing_file_is_left_alone_and_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    checkpoint = _trained(tmp_path / "run", tiny_model())
    (tmp_path / "out.pth").write_bytes(b"mine")
    with pytest.raises(CheckpointError, match=r"out.pth already exists; nothing was written"):
        export_reference(checkpoint, tmp_path / "out.pth")
    assert (tmp_path / "out.pth").read_bytes() == b"mine"
    with pytest.raises(CheckpointError, match="nowhere is not a directory, so"):
        export_reference(checkpoint, tmp_path / "nowhere" / "out.pth")

    def full(content: Any, stream: Any) -> None:
        stream.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        export_reference(checkpoint, tmp_path / "second.pth")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.pth", "run"]


def test_a_failed_import_leaves_nothing(tmp_path, monkeypatch):
    write_file(tmp_path / "in.pth", entries_of(tiny_model()))

    def full(file: Path, pieces: list[bytes], name: str) -> None:
        file.write_bytes(pieces[0][: len(pieces[0]) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trainer.checkpoints.files.write_file", full)
    with pytest.raises(OSError, match="No space left"):
        import_reference(tmp_path / "in.pth", tmp_path / "out", settings=STATED)
    assert [path.name for path in tmp_path.iterdir()] == ["in.pth"]


def test_two_exports_of_one_checkpoint_are_the_same_bytes(tmp_path):
    checkpoint = _trained(tmp_path / "run", tiny_model())
    for name in ("one.pth", "other.pth"):
        export_reference(checkpoint, tmp_path / name)
    assert (tmp_path / "one.pth").read_bytes() == (tmp_path / "other.pth").read_bytes()
