"""The reference's own files: they come in, compute what was recorded, and go out again as they were."""

from pathlib import Path

import pytest
import torch

from tests.support.convert import assert_equal_content, recorded_settings
from tests.support.models import recorded_config
from tests.support.reference import reference_arrays, reference_json, shared_dir
from trainer.checkpoints.files import read_header, read_tensors
from trainer.checkpoints.models import load_encoder, load_fine_tuned
from trainer.checkpoints.reference.convert import Converted, export_reference, import_reference
from trainer.models.heads.classifier import Classifier
from trainer.models.heads.part_segmenter import PartSegmenter

FILES = {
    "pretrain": "pretrain_ckpt.pth",
    "modelnet40": "finetune_ckpt_modelnet40.pth",
    "scanobjectnn": "finetune_ckpt_scanobjectnn.pth",
    "partseg": "partseg_ckpt.pth",
}


def _import(which: str, folder: Path) -> Converted:
    return import_reference(shared_dir("reference") / FILES[which], folder / which, settings=recorded_settings(which))


def _recorded(which: str) -> dict:
    return torch.load(shared_dir("reference") / FILES[which], map_location="cpu", weights_only=True)


@pytest.mark.parametrize("which", FILES)
def test_out_and_in_again_nothing_has_changed(which, tmp_path):
    _import(which, tmp_path)
    teacher = shared_dir("reference") / FILES[which] if which == "pretrain" else None
    export_reference(tmp_path / which, tmp_path / "back.pth", teacher=teacher)
    back = torch.load(tmp_path / "back.pth", map_location="cpu", weights_only=True)
    assert_equal_content(back, _recorded(which))
    again = import_reference(tmp_path / "back.pth", tmp_path / "again", settings=recorded_settings(which))
    first, second = tmp_path / which, tmp_path / "again"
    assert (second / "model.safetensors").read_bytes() == (first / "model.safetensors").read_bytes()
    assert again.header.config == read_header(first).config


def test_without_a_teacher_all_but_the_teacher_comes_back(tmp_path):
    _import("pretrain", tmp_path)
    exported = export_reference(tmp_path / "pretrain", tmp_path / "back.pth")
    back = torch.load(tmp_path / "back.pth", map_location="cpu", weights_only=True)
    recorded = _recorded("pretrain")
    frozen = [name for name in recorded["base_model"] if name.startswith("module.clip_model.")]
    assert len(frozen) == len(recorded["base_model"]) - len(back["base_model"]) > 0
    for name in frozen:
        del recorded["base_model"][name]
    # the optimiser goes by position, and the teacher's parameters have theirs
    del recorded["optimizer"]
    assert_equal_content(back, recorded)
    assert any("without the teacher (clip_model.)" in note for note in exported.notes)
    assert "without the optimiser's state, whose order includes the teacher's parameters" in exported.notes


def test_the_teacher_may_come_from_its_own_file(tmp_path):
    _import("pretrain", tmp_path)
    teacher = shared_dir("reference") / "teacher_openai.pt"
    export_reference(tmp_path / "pretrain", tmp_path / "back.pth", teacher=teacher)
    back = torch.load(tmp_path / "back.pth", map_location="cpu", weights_only=True)
    assert_equal_content(back, _recorded("pretrain"))


def test_the_imported_student_is_the_recorded_one(tmp_path):
    converted = _import("pretrain", tmp_path)
    model, masking = recorded_config(drop_path=0.1)
    encoder = load_encoder(converted.path)
    assert (encoder.config, encoder.masking) == (model, masking)
    assert encoder.teacher_channels == reference_json("config")["config"]["clip"]["embed_dim"]
    arrays = reference_arrays("model_pretrain")
    with torch.no_grad():
        feature = encoder.encode(torch.from_numpy(arrays["pts"]), "top")
    # the folder's tolerance; measured 2e-6
    assert (feature - torch.from_numpy(arrays["eval_feat"])).abs().max() <= 1e-4


@pytest.mark.parametrize("which", ["modelnet40", "scanobjectnn"])
def test_the_imported_classifier_gives_the_recorded_logits(which, tmp_path):
    classifier, header = load_fine_tuned(_import(which, tmp_path).path)
    assert isinstance(classifier, Classifier)
    assert header.kind == "classifier"
    arrays = reference_arrays("finetune")
    with torch.no_grad():
        logits = classifier(torch.from_numpy(arrays[f"{which}__pts"]))
    assert (logits - torch.from_numpy(arrays[f"{which}__eval_logits"])).abs().max() <= 3e-5  # the folder's tolerance


def test_the_imported_segmenter_gives_the_recorded_parts(tmp_path):
    segmenter, header = load_fine_tuned(_import("partseg", tmp_path).path)
    assert isinstance(segmenter, PartSegmenter)
    assert header.kind == "segmentation"
    arrays = reference_arrays("partseg")
    with torch.no_grad():
        got = segmenter(torch.from_numpy(arrays["pts"]), torch.from_numpy(arrays["category"]).long())
    assert (got - torch.from_numpy(arrays["eval_log_probs"])).abs().max() <= 3e-5  # the folder's tolerance


def test_the_header_says_where_it_came_from_and_what_was_assumed(tmp_path):
    path = shared_dir("reference") / FILES["pretrain"]
    converted = import_reference(path, tmp_path / "bare")
    header, entries = read_header(tmp_path / "bare"), _recorded("pretrain")
    assert header.origin is not None
    assert header.origin["file"] == FILES["pretrain"]
    assert header.origin["numbers"] == {name: entries[name] for name in ("epoch", "metrics", "best_metrics")}
    assert header.metrics == entries["metrics"]
    assert header.epoch == entries["epoch"] + 1  # the reference counts from 0
    told = {"model.groups", "model.neighbours", "model.heads", "model.drop_path", "masking.mode", "masking.ratio"}
    assert set(header.origin["assumed"]) == told
    assert "assumed, because weights do not show it: model.groups = [512, 256, 64]" in converted.notes
    frozen = sum("clip_model." in name for name in entries["base_model"])
    assert f"left out: the frozen teacher, {frozen} tensors under clip_model." in converted.notes
    stated = _import("pretrain", tmp_path)
    assert stated.header.origin is not None
    assert set(stated.header.origin["assumed"]) == {"model.drop_path", "masking.mode"}


def test_a_full_size_state_dict_of_the_recorded_names_is_recognised_as_the_papers_model():
    """Of all four models: shapes alone give every size of the paper's but what no shape shows."""
    from trainer.checkpoints.reference.recognise import build_empty, complete_sections, misfits, recognise
    from trainer.models.config import MaskingConfig, ModelConfig
    from trainer.models.heads.config import SCANOBJECTNN, ClassifierConfig, SegmentationConfig

    facts = reference_json("params")
    no_decoder = {"decoder_dims": (384,), "decoder_depths": (1,), "decoder_up_blocks": ()}
    encoder = ModelConfig.reference(**no_decoder)
    expected = {
        "pretrain": {"model": ModelConfig.reference(), "masking": MaskingConfig()},
        "finetune_modelnet40": {"model": encoder, "classifier": ClassifierConfig(distance="expanded")},
        "finetune_scanobjectnn": {"model": encoder, "classifier": _expanded(SCANOBJECTNN)},
        "partseg": {"model": encoder, "segmentation": _expanded(SegmentationConfig())},
    }
    for name, sections in expected.items():
        entries = {
            key: torch.empty(shape, dtype=getattr(torch, dtype), device="meta")
            for key, (shape, dtype) in facts[name]["state_dict"].items()
        }
        found = recognise(entries, name)
        assert complete_sections(found, {}, name)[0] == sections
        assert misfits(found.entries, build_empty(found.kind, sections, found.teacher).state_dict()) == []
    assert recognise(entries, "partseg").kind == "segmentation"


def _expanded(config):
    from dataclasses import replace

    return replace(config, distance="expanded")


def test_every_bit_of_every_tensor_is_stored(tmp_path):
    converted = _import("pretrain", tmp_path)
    tensors = read_tensors(converted.path, converted.header)
    entries = _recorded("pretrain")["base_model"]
    expected = {
        name.removeprefix("module."): value for name, value in entries.items() if "clip_model." not in name
    }  # fmt: skip
    assert_equal_content(tensors, expected)
