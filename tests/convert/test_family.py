"""Files of Point-MAE and its relatives: recognised by keys alone, read to the bit, and what is unknown refused."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.parity.plain_models import MEMBERS, plain_settings, relative_classifier, relative_encoder
from benchmarks.parity.recorded import Recorded
from tests.support.commands import run
from tests.support.convert import assert_equal_content, entries_of, optimizer_state, write_file
from tests.support.plain_student import PLAIN, RELATIVES, plain_student
from tests.support.reference import shared_dir
from trainer.checkpoints.files import MODEL, OPTIMIZER
from trainer.checkpoints.models import load_fine_tuned, load_model
from trainer.checkpoints.reference.convert import export_reference, import_reference
from trainer.checkpoints.transfer import load_pretrained_encoder
from trainer.errors import CheckpointError
from trainer.models.heads.build import new_classifier, new_segmenter
from trainer.models.heads.config import PlainClassifierConfig, PlainSegmentationConfig
from trainer.models.plain.student import PlainStudent

STATED = {"model": {"groups": 13, "neighbours": 7, "heads": 5, "decoder_heads": 3}}
WIDE = (128, 256)  # of the official token embedding, which its code fixes
TUNED = {"model": {"groups": 13, "neighbours": 7, "heads": 5}}
BESIDE = {  # what stands beside the recorded encoders in the public files: names of params.json, small here
    "pointbert": ("transformer_k.norm.weight", "dvae.encoder.first_conv.0.weight", "queue", "queue_ptr"),
    "act": ("dvae_tokenizer.visual_embed.norm.weight", "proj_head.weight", "proj_head.bias"),
    "recon": ("img_encoder.model.cls_token", "text_encoder.positional_embedding", "img_proj.weight", "text_proj.bias"),
    "pcp": (),
    "femae": (),
}


@pytest.fixture(scope="module")
def recorded() -> Recorded:
    return Recorded(shared_dir("reference_plain"))


def sizes_of(recorded: Recorded, name: str) -> dict[str, Any]:
    sizes = recorded.sizes(MEMBERS[name].sizes)
    own = {"groups": sizes["num_group"], "neighbours": sizes["group_size"], "heads": sizes["num_heads"]}
    if "gcn_k" in sizes:
        own["adapter_neighbours"] = sizes["gcn_k"]
    return {"model": own}


@pytest.mark.parametrize("name", MEMBERS)
def test_pretraining_files_of_the_recorded_layouts(recorded: Recorded, tmp_path: Path, name: str) -> None:
    encoder, entries = relative_encoder(MEMBERS[name], recorded, plain_settings(), torch.device("cpu"))
    beside = {key: torch.ones(2, 3) for key in BESIDE[name]}
    file = write_file(tmp_path / "file.pth", {f"module.{key}": value for key, value in (entries | beside).items()})
    stated = sizes_of(recorded, name)
    width = encoder.settings.width
    stated["model"]["decoder_heads"] = next(heads for heads in (6, 4, 2) if width % heads == 0)
    converted = import_reference(file, tmp_path / "out", settings=stated)
    model, header = load_model(tmp_path / "out")
    assert isinstance(model, PlainStudent)
    assert header.origin is not None
    assert header.origin["member"] == MEMBERS[name].layout.name
    for key, value in encoder.state_dict().items():
        assert torch.equal(value, model.state_dict()[f"MAE_encoder.{key}"]), key
    text = "\n".join(converted.notes)
    assert f"recognised by its keys: {MEMBERS[name].layout.name}'s pre-training" in text
    assert all(key in text for key in BESIDE[name])
    new = {"pointbert": "mask_token", "act": "mask_token", "pcp": "decoder_pos_embed.0.weight"}.get(name)
    assert ("left new" in text) == (new is not None)
    assert new is None or f"({new}" in text
    again = import_reference(file, tmp_path / "again", settings=stated)
    assert (again.path / MODEL).read_bytes() == (converted.path / MODEL).read_bytes()
    tuned = new_classifier(model.config, PlainClassifierConfig(pooling=MEMBERS[name].layout.pooling))
    found = load_pretrained_encoder(tuned, model.state_dict(), source="it")
    fresh = {key for key in found.kept if not key.startswith("cls_head")}
    assert fresh == ({"cls_token", "cls_pos"} if name == "pcp" else set())


@pytest.mark.parametrize("name", MEMBERS)
def test_fine_tuned_files_answer_as_recorded(recorded: Recorded, tmp_path: Path, name: str) -> None:
    made = relative_classifier(MEMBERS[name], recorded, plain_settings(), torch.device("cpu"))
    entries: dict[str, Tensor] = {}
    for key, value in made.state_dict().items():
        if not key.endswith("num_batches_tracked"):  # absent in old files, and 0 then
            entries[key] = value
        twin = key.replace(".cls.bn1.", ".cls.conv1.1.").replace(".cls.bn2.", ".cls.conv2.1.")
        if twin != key and key in entries:
            entries[twin] = value
    file = write_file(tmp_path / "file.pth", entries)
    converted = import_reference(file, tmp_path / "out", settings=sizes_of(recorded, name))
    assert any(f"{MEMBERS[name].layout.name}'s classifier" in note or name == "act" for note in converted.notes)
    model, _ = load_fine_tuned(tmp_path / "out")
    arrays = recorded.arrays(name)
    with torch.no_grad():
        logits = model(torch.from_numpy(arrays["pts"]))
    np.testing.assert_allclose(logits.numpy(), arrays["fine__eval_logits"], rtol=0, atol=5e-5)
    entries["cls_head_finetune.extra"] = torch.ones(2)
    entries["prompt_embeddings"] = torch.ones(3)
    with pytest.raises(CheckpointError, match="but for 1 names: prompt_embeddings"):
        import_reference(write_file(tmp_path / "other.pth", entries), tmp_path / "other")


def test_the_recorded_files_go_in_and_out_again_as_they_were(recorded: Recorded, tmp_path: Path) -> None:
    pre, seg = recorded.sizes("pre"), recorded.sizes("seg")
    stated = {
        "pointmae_pretrain_ckpt": {"groups": pre["num_group"], "heads": pre["num_heads"]}
        | {"decoder_heads": pre["decoder_num_heads"]},
        "pointmae_partseg_ckpt": {"heads": seg["num_heads"]},
    }
    for name, model in stated.items():
        file = shared_dir("reference_plain") / f"{name}.pth"
        import_reference(file, tmp_path / name, settings={"model": model})
        export_reference(tmp_path / name, tmp_path / f"{name}.pth")
        assert_equal_content(
            torch.load(tmp_path / f"{name}.pth", weights_only=True), torch.load(file, weights_only=True)
        )


def test_our_own_students_go_out_and_in_again_to_the_same_bytes(tmp_path: Path) -> None:
    model = plain_student(targets="3d", embed_first=WIDE)
    file = write_file(tmp_path / "file.pth", entries_of(model), optimizer=optimizer_state(model))
    first = import_reference(file, tmp_path / "first", settings=STATED)
    export_reference(tmp_path / "first", tmp_path / "again.pth")
    second = import_reference(tmp_path / "again.pth", tmp_path / "second", settings=STATED)
    for name in (MODEL, OPTIMIZER):
        assert (first.path / name).read_bytes() == (second.path / name).read_bytes()
    loaded, _ = load_model(first.path)
    assert loaded.config == replace(PLAIN, targets="3d", embed_first=WIDE, fps_skip_near_origin=True, drop_path=0.1)


@pytest.mark.parametrize("relative", RELATIVES)
def test_relatives_with_encoders_of_their_own_have_no_way_out(tmp_path: Path, relative: str) -> None:
    model = plain_student(targets="3d", embed_first=WIDE, **RELATIVES[relative])
    prefix = {"Point-BERT": "transformer_q.", "ACT": "ACT_encoder."}.get(relative)
    entries = dict(model.state_dict())
    if prefix:
        entries = {k.replace("MAE_encoder.", prefix): v for k, v in entries.items() if k.startswith("MAE_encoder.")}
    if relative == "PCP-MAE":
        entries["pred_pos_proj.0.bias"] = torch.ones(3)
        entries = {key: value for key, value in entries.items() if not key.startswith("decoder_pos_embed.")}
    if relative == "Point-FEMAE":
        entries = {
            re.sub(r"^(mask_token|decoder_pos_embed|MAE_decoder|increase_dim)", r"\1_block", key): value
            for key, value in entries.items()
        }
    stated = {"model": {**STATED["model"], "adapter_neighbours": 4}}
    import_reference(write_file(tmp_path / "file.pth", entries), tmp_path / "in", settings=stated)
    loaded, _ = load_model(tmp_path / "in")
    assert loaded.config == replace(
        model.config, fps_skip_near_origin=True, drop_path=0.1, decoder_depth=4 if prefix else 2, adapter_neighbours=4
    )
    if relative in ("Point-MAE", "ACT"):
        export_reference(tmp_path / "in", tmp_path / "out.pth")
        state = torch.load(tmp_path / "out.pth", weights_only=True)["base_model"]
        assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in state.items())
    else:
        with pytest.raises(CheckpointError, match="Point-MAE's encoder is a plain one"):
            export_reference(tmp_path / "in", tmp_path / "out.pth")


@pytest.mark.parametrize("relative", RELATIVES)
def test_sizes_of_fine_tuned_models_are_found(tmp_path: Path, relative: str) -> None:
    config = replace(PLAIN, fps_skip_near_origin=True, drop_path=0.1, **RELATIVES[relative])
    head = PlainClassifierConfig(
        classes=4, hidden=(9,) if relative == "Point-BERT" else (9, 8), batch_norm=relative != "Point-BERT",
        pooling="mean" if relative == "Point-FEMAE" else "joined",
    )  # fmt: skip
    stated: dict[str, Any] = {"model": {**TUNED["model"], "adapter_neighbours": 4}}
    import_reference(
        write_file(tmp_path / "file.pth", dict(new_classifier(config, head).state_dict())), tmp_path / "out",
        settings=stated,
    )  # fmt: skip
    loaded, header = load_fine_tuned(tmp_path / "out")
    assert header.kind == "classifier"
    assert loaded.config == head
    parts = PlainSegmentationConfig(
        parts=6, categories=3, groups=11, neighbours=5, taps=(0, 2), embedding=4, propagation=(10, 8), hidden=(7, 6),
        interpolation="expanded",
    )  # fmt: skip
    state = dict(new_segmenter(config, parts).state_dict())
    if relative == "ACT":
        state = {re.sub(r"^(label_conv|propagation_0|convs\d|bns\d)\.", r"\1_cls.", key): v for key, v in state.items()}
    stated["segmentation"] = {"groups": 11, "neighbours": 5, "taps": (0, 2)}
    import_reference(write_file(tmp_path / "parts.pth", state), tmp_path / "parts", settings=stated)
    loaded, header = load_fine_tuned(tmp_path / "parts")
    assert (header.kind, loaded.config) == ("segmentation", parts)
    for key, value in loaded.state_dict().items():
        assert torch.equal(value, state[key if relative != "ACT" else _of_act(key)]), key


def _of_act(key: str) -> str:
    return re.sub(r"^(label_conv|propagation_0|convs\d|bns\d)\.", r"\1_cls.", key)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"+prompt.weight": (2,)}, r"is Point-MAE's by its other names, but 1 are not: prompt\.weight"),
        ({"+transformer_q.norm.weight": (30,), "+img_proj.bias": (2,)}, "names of Point-BERT and ReCon at once"),
        ({"-MAE_encoder.norm.bias": ()}, r"1 of \d+ names missing: MAE_encoder\.norm\.bias"),
        ({"-increase_dim.0.weight": ()}, r"1 of \d+ names missing: increase_dim\.0\.weight"),
        ({"+MAE_encoder.cls_token": (1, 1, 30)}, r"1 names unexpected: MAE_encoder\.cls_token"),
        (
            {"+MAE_encoder.encoder.first_conv.0.weight": (64, 3, 1)},
            r"0\.weight is \[64, 3, 1\], expected \[12",
        ),
        ({"+module.x.norm": (2,), "+x.module.norm": (2,)}, "both are there"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_written(tmp_path: Path, change: Any, words: str) -> None:
    entries = dict(plain_student(targets="3d").state_dict())
    for key, shape in change.items():
        if key.startswith("-"):
            del entries[key[1:]]
        else:
            entries[key[1:]] = torch.ones(shape)
    with pytest.raises(CheckpointError, match=words):
        import_reference(write_file(tmp_path / "file.pth", entries), tmp_path / "out", settings=STATED)
    assert not (tmp_path / "out").exists()


def test_two_names_of_one_tensor_must_agree_and_an_encoder_alone_is_refused(tmp_path: Path) -> None:
    config = replace(PLAIN, **RELATIVES["Point-FEMAE"])
    entries = dict(new_classifier(config, PlainClassifierConfig(pooling="mean")).state_dict())
    entries["blocks.blocks.0.cls.conv1.1.weight"] = entries["blocks.blocks.0.cls.bn1.weight"] + 1
    with pytest.raises(CheckpointError, match="two names of one tensor, and their values differ"):
        import_reference(write_file(tmp_path / "file.pth", entries), tmp_path / "out")
    alone = {key: value for key, value in entries.items() if not key.startswith("cls_head")}
    with pytest.raises(CheckpointError, match="has an encoder, but no head"):
        import_reference(write_file(tmp_path / "alone.pth", alone), tmp_path / "out")


def test_a_file_of_another_family_is_refused_with_its_names(tmp_path: Path) -> None:
    file = write_file(tmp_path / "point-mae.pth", {"sa1.mlp_convs.0.weight": torch.ones(4, 3, 1)})
    words = r"its 1 names are sa1\.mlp_convs\.0\.weight[\s\S]*or those of Point-MAE and its relatives"
    with pytest.raises(CheckpointError, match=words):
        import_reference(file, tmp_path / "out")


def test_wrappers_are_taken_out_of_the_middle_of_names(tmp_path: Path) -> None:
    model = plain_student(targets="3d")
    entries = {key.replace("MAE_encoder.", "MAE_encoder.module."): v for key, v in model.state_dict().items()}
    import_reference(write_file(tmp_path / "file.pth", entries), tmp_path / "out", settings=STATED)
    loaded, _ = load_model(tmp_path / "out")
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in loaded.state_dict().items())


def test_the_command_says_what_became_of_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = plain_student(targets="3d", front="class")
    entries = {k.replace("MAE_encoder.", "ACT_encoder."): v for k, v in model.state_dict().items() if "encoder" in k}
    file = write_file(tmp_path / "point-mae.pth", entries | {"proj_head.bias": torch.ones(2)})
    chosen = [f"model.{key}={value}" for key, value in STATED["model"].items()]
    sets = [word for text in chosen for word in ("--set", text)]
    done = run(capsys, "checkpoint", "import", file, "--out", tmp_path / "out", *sets)
    assert done.code == 0, done.err
    assert "recognised by its keys: ACT's pre-training" in done.out
    assert "left out: the head of the teacher's features, 1 tensors (proj_head.bias)" in done.out
    assert "left new, drawn from seed 0: 53 tensors (mask_token, decoder_pos_embed.0.weight" in done.out
    assert "assumed, because weights do not show it: masking.ratio = 0.8" in done.out
    wrong = run(capsys, "checkpoint", "import", file, "--out", tmp_path / "other", "--set", "model.encoder_dims=[3]")
    assert wrong.code == 2
    assert "model.encoder_dims is not a setting" in wrong.err
    header = json.loads((tmp_path / "out" / "checkpoint.json").read_text())
    assert header["config"]["model"]["architecture"] == "plain"


def test_losses_that_the_layout_has_no_head_of_are_told(tmp_path: Path, cache_of_two: Any) -> None:
    path, student = cache_of_two
    converted = export_reference(path, tmp_path / "out.pth")
    assert any("without the head of the global loss and the head of the 2D loss" in note for note in converted.notes)
    state = torch.load(tmp_path / "out.pth", weights_only=True)
    ours = {f"module.{key}" for key in student.state_dict() if not key.startswith(("rec_head_2d", "align_head"))}
    assert set(state["base_model"]) == ours
    assert len(state["optimizer"]["param_groups"]) == 2
    held = sum(len(group["params"]) for group in state["optimizer"]["param_groups"])
    assert held == sum(1 for key, _ in student.named_parameters() if f"module.{key}" in ours)
    import_reference(tmp_path / "out.pth", tmp_path / "in", settings=STATED)


@pytest.fixture(scope="module")
def cache_of_two(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run of a plain student with all three losses."""
    from tests.support.training import train, training_cache
    from trainer.config import AlignmentConfig

    folder = tmp_path_factory.mktemp("plain-run")
    cache = training_cache(folder / "cache", 16)
    alignment = AlignmentConfig(weight=1.0)
    train(cache, folder / "run", model=replace(PLAIN, embed_first=WIDE), epochs=1, alignment=alignment)
    return folder / "run", load_model(folder / "run")[0]
