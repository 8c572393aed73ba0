"""Kind and sizes are read off the tensors, and what does not fit is named before anything is written."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.convert import entries_of, optimizer_state, write_file
from tests.support.finetune import tiny_classifier, tiny_segmenter
from tests.support.models import TINY, TINY_CHANNELS, tiny_model
from trainer.checkpoints.files import OPTIMIZER, read_tensors
from trainer.checkpoints.models import load_fine_tuned, load_model
from trainer.checkpoints.reference.convert import import_reference
from trainer.checkpoints.reference.recognise import complete_sections, recognise
from trainer.errors import CheckpointError
from trainer.models.config import MaskingConfig

STATED = {"model": {"groups": TINY.groups, "neighbours": TINY.neighbours, "heads": TINY.heads}}
HEAD = {"model": {"groups": TINY.groups, "heads": TINY.heads}}


def _write(path: Path, entries: dict[str, Any], **others: Any) -> Path:
    return write_file(path / "file.pth", entries, **others)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"encoder_depths": (2, 1, 3), "decoder_depths": (2, 1), "decoder_up_blocks": (2,), "mlp_ratio": 2.0},
        {"decoder_up_blocks": (0,), "embed_first": (20, 12)},
        {"mlp_ratio": 1.7},  # 12, 20 and 26 times that, rounded down
        {"mlp_ratio": 2.35},
        {"decoder_dims": (26,), "decoder_depths": (3,), "decoder_up_blocks": ()},
        {"groups": (48, 24, 12, 6), "neighbours": (8, 4, 4, 3), "encoder_dims": (6, 16, 22, 40),
         "encoder_depths": (1, 1, 1, 1), "decoder_dims": (40, 22, 16), "decoder_depths": (1, 2, 1),
         "decoder_up_blocks": (1, 2)},
        {"targets": "3d"},
    ],
)  # fmt: skip
def test_sizes_of_all_kinds_are_found(settings, tmp_path):
    masking = MaskingConfig(mode="random") if settings.get("targets") == "3d" else MaskingConfig()
    model = tiny_model(masking=masking, **settings)
    config = model.config
    stated = {"model": {"groups": config.groups, "neighbours": config.neighbours, "heads": config.heads}}
    stated["model"] |= {
        name: getattr(config, name)
        for name in ("drop_path", "batch_norm_groups", "fps_skip_near_origin", "token0_leak", "eval_hide_unused")
    }
    stated["model"] |= {"interpolation": config.interpolation}
    import_reference(_write(tmp_path, entries_of(model)), tmp_path / "out", settings=stated)
    loaded, header = load_model(tmp_path / "out")
    assert loaded.config == config
    assert loaded.masking == masking
    both = settings.get("targets") != "3d"
    assert header.teacher == ({"channels": TINY_CHANNELS, "views": 3} if both else {"channels": 0, "views": 0})
    points = torch.randn(2, 64, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(loaded.encode(points), model.eval().encode(points))


def test_one_head_is_point_m2aes(tmp_path):
    model = tiny_model(targets="3d", masking=MaskingConfig(mode="random"))
    entries = {name.replace("rec_head_3d", "rec_head"): value for name, value in entries_of(model).items()}
    assert "module.rec_head.weight" in entries
    converted = import_reference(_write(tmp_path, entries), tmp_path / "out", settings=STATED)
    loaded, header = load_model(tmp_path / "out")
    assert (loaded.config.targets, loaded.masking.mode) == ("3d", "random")
    assert header.origin is not None
    assert header.origin["renamed"] == {"rec_head_3d.weight": "rec_head.weight", "rec_head_3d.bias": "rec_head.bias"}
    assert torch.equal(loaded.rec_head_3d.weight, model.rec_head_3d.weight)
    assert "assumed, because weights do not show it: masking.mode = random" in converted.notes
    both = {**entries, "module.rec_head_3d.weight": entries["module.rec_head.weight"]}
    with pytest.raises(CheckpointError, match=r"has both rec_head_3d.weight and rec_head.weight.*; expected only one"):
        import_reference(_write(tmp_path, both), tmp_path / "second", settings=STATED)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("weights", ["base_model", "model_state_dict", "model", ""])
def test_weights_are_found_wherever_they_stand(prefix, weights, tmp_path):
    model = tiny_model()
    entries = entries_of(model, prefix=prefix)
    torch.save({weights: entries, "epoch": 2} if weights else entries, tmp_path / "file.pth")
    converted = import_reference(tmp_path / "file.pth", tmp_path / "out", settings=STATED)
    assert converted.header.origin is not None
    assert (converted.header.origin["weights"], converted.header.origin["prefix"]) == (weights, prefix)
    assert converted.header.epoch == (3 if weights else 0)
    loaded = load_model(tmp_path / "out")[0]
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())


def test_fine_tuned_models_are_not_taken_for_pre_training_ones(tmp_path):
    for pooling in ("sum", "concat"):
        classifier = tiny_classifier(pooling=pooling)
        path = _write(tmp_path, entries_of(classifier))
        import_reference(path, tmp_path / pooling, settings=HEAD)
        loaded, header = load_fine_tuned(tmp_path / pooling)
        assert (header.kind, header.teacher) == ("classifier", {})
        assert (loaded.config.classes, loaded.config.hidden, loaded.config.pooling) == (5, (16, 12), pooling)
    import_reference(_write(tmp_path, entries_of(tiny_segmenter(), prefix="")), tmp_path / "parts", settings=HEAD)
    loaded, header = load_fine_tuned(tmp_path / "parts")
    assert header.kind == "segmentation"
    config = loaded.config
    assert (config.parts, config.categories, config.embedding) == (6, 3, 4)
    assert (config.propagation, config.hidden) == ((16, 12), (16, 12, 8))
    with pytest.raises(CheckpointError, match=r"is of kind segmentation; expected a pre-training model. Load it with"):
        load_model(tmp_path / "parts")
    import_reference(_write(tmp_path, entries_of(tiny_model())), tmp_path / "whole", settings=STATED)
    with pytest.raises(CheckpointError, match="is of kind pretraining; expected a fine-tuned model"):
        load_fine_tuned(tmp_path / "whole")


def test_missing_unexpected_misshapen_and_mistyped_entries_are_all_named(tmp_path):
    entries = entries_of(tiny_model())
    del entries["module.h_encoder.encoder_norms.1.bias"]
    del entries["module.decoder_norm.weight"]
    entries["module.surplus"] = torch.zeros(1)
    entries["module.h_encoder.encoder_pos_embeds.0.0.bias"] = torch.zeros(13)
    entries["module.mask_token"] = torch.zeros(1, 26, dtype=torch.float64)
    count = len(tiny_model().state_dict())
    with pytest.raises(CheckpointError) as caught:
        import_reference(_write(tmp_path, entries), tmp_path / "out", settings=STATED)
    text = str(caught.value)
    assert "file.pth does not fit a pretraining model of the sizes that its weights imply; nothing was written" in text
    assert f"2 of {count} names missing: h_encoder.encoder_norms.1.bias, decoder_norm.weight" in text
    assert "1 names unexpected: surplus" in text
    assert "1 of another shape: h_encoder.encoder_pos_embeds.0.0.bias is [13], expected [12]" in text
    assert "1 of another type: mask_token is float64, expected float32" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.pth"]


@pytest.mark.parametrize("part", ["h_decoder.", "decoder_pos_embeds.", "h_encoder.token_embed.1.", "rec_head_3d."])
def test_a_file_that_lacks_a_whole_part_names_it(part, tmp_path):
    whole = entries_of(tiny_model())
    entries = {name: value for name, value in whole.items() if not name.startswith(f"module.{part}")}
    # sizes that only the missing part shows are the paper's, so shapes may differ besides
    lost = len(whole) - len(entries)
    with pytest.raises(CheckpointError, match=rf"{lost} of \d+ names missing: {part}"):
        import_reference(_write(tmp_path, entries), tmp_path / "out", settings=STATED)


def test_other_models_are_refused_by_their_names(tmp_path):
    foreign = {"module.conv1.weight": torch.zeros(3), "module.fc.bias": torch.zeros(2)}
    with pytest.raises(
        CheckpointError, match=r"is not a model of the reference: its 2 names are conv1.weight, fc.bias"
    ):
        import_reference(_write(tmp_path, foreign), tmp_path / "out")
    encoder = {name: value for name, value in entries_of(tiny_model()).items() if name.startswith("module.h_encoder.")}
    with pytest.raises(
        CheckpointError, match=r"(?s)not a model of the reference: its .*h_encoder.* and a decoder or a head"
    ):
        import_reference(_write(tmp_path, encoder), tmp_path / "out")
    mixed = {**entries_of(tiny_model()), **entries_of(tiny_classifier())}
    with pytest.raises(CheckpointError, match=r"mixes names of 2 kinds of model, pretraining and classifier.*cls_head"):
        import_reference(_write(tmp_path, mixed), tmp_path / "out")
    double = {**entries_of(tiny_model()), "mask_token": torch.zeros(1, 24)}
    with pytest.raises(CheckpointError, match=r"both with and without the prefix `module.`: module.mask_token"):
        import_reference(_write(tmp_path, double), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_stated_must_not_contradict_the_shapes():
    found = recognise(tiny_model().state_dict(), "file.pth")
    wrong = {"encoder_dims": (6, 12, 24), "groups": (48, 24, 8), "neighbours": (8, 5, 4), "heads": 5}
    with pytest.raises(CheckpointError) as caught:
        complete_sections(found, {"model": wrong, "classifier": {"classes": 3}}, "file.pth")
    text = str(caught.value)
    assert "[classifier] does not apply to a pretraining model" in text
    assert "model.encoder_dims = (6, 12, 24) was given, but the shapes imply (12, 20, 26)" in text
    assert "model.neighbours[1] = 5, but the heads predict 4" in text
    assert "model.encoder_dims has 12, which is not a multiple of heads = 5" in text
    assert "Give the settings that shapes cannot show (model.groups, model.neighbours, model.heads)" in text


def test_four_levels_need_their_groups_stated():
    model = tiny_model(
        groups=(48, 24, 12, 6), neighbours=(8, 4, 4, 3), encoder_dims=(6, 12, 20, 26), encoder_depths=(1, 1, 1, 1)
    )
    found = recognise(model.state_dict(), "file.pth")
    with pytest.raises(CheckpointError, match=r"must have one value per level; groups = \(512, 256, 64\) has 3"):
        complete_sections(found, {"model": {"heads": 2}}, "file.pth")


def test_the_optimisers_state_comes_along(tmp_path):
    model = tiny_model(targets="3d", masking=MaskingConfig(mode="random"))
    state = optimizer_state(model)
    path = _write(tmp_path, entries_of(model), optimizer=state)
    converted = import_reference(path, tmp_path / "out", settings=STATED)
    flat = read_tensors(tmp_path / "out", converted.header, OPTIMIZER)
    assert len(flat) == 3 * len(list(model.parameters()))
    # spared ones first, in the model's order: the mask token is the first of all
    assert torch.equal(flat["exp_avg/mask_token"], state["state"][0]["exp_avg"])
    last = max(state["state"])
    assert torch.equal(flat["exp_avg_sq/rec_head_3d.weight"], state["state"][last]["exp_avg_sq"])
    assert all(flat[f"step/{name}"].item() == 7 for name, _ in model.named_parameters())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda state: state["param_groups"].pop(), "its groups are not \\d+ parameters"),
        (lambda state: state["state"].update({10_000: {}}), "its state 10000 matches no parameter"),
        (lambda state: state["state"][0].update(momentum_buffer=torch.zeros(1)), "it is not AdamW's: momentum_buffer"),
        (lambda state: state["state"][0].update(exp_avg=torch.zeros(3)), r"exp_avg of mask_token is \[3\]"),
        (lambda state: state.update(state=[]), "it is not a torch optimiser's"),
    ],
)
def test_an_optimiser_that_does_not_fit_is_left_out_and_said_so(change, reason, tmp_path):
    model = tiny_model(targets="3d", masking=MaskingConfig(mode="random"))
    state = optimizer_state(model)
    change(state)
    converted = import_reference(_write(tmp_path, entries_of(model), optimizer=state), tmp_path / "o", settings=STATED)
    [note] = [note for note in converted.notes if note.startswith("left out")]
    assert note.startswith("left out: the optimiser's state, because ")
    assert re.search(reason, note)
    assert OPTIMIZER not in converted.header.files


def test_an_existing_folder_is_left_alone(tmp_path):
    path = _write(tmp_path, entries_of(tiny_model()))
    (tmp_path / "out").mkdir()
    with pytest.raises(CheckpointError, match="out already exists; nothing was written"):
        import_reference(path, tmp_path / "out", settings=STATED)
    assert list((tmp_path / "out").iterdir()) == []
