"""Taking a pre-trained encoder into a fine-tuning model: all of it, or an error that names what is wrong."""

import pytest
import torch
from torch import Tensor, nn

from tests.support.finetune import recorded_classifier, tiny_classifier, tiny_segmenter
from tests.support.models import tiny_model
from tests.support.reference import shared_dir
from trainer.checkpoints.transfer import load_pretrained_encoder


def wrapped(entries: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"module.{name}": value for name, value in entries.items()}


def untouched(model: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("make", [tiny_classifier, tiny_segmenter])
@pytest.mark.parametrize("prefix", [False, True])
def test_the_encoder_is_taken_and_the_head_kept(make, prefix):
    entries = tiny_model(seed=1).state_dict()
    model = make(seed=2)
    before = copied(model)
    report = load_pretrained_encoder(model, wrapped(entries) if prefix else entries, source="run/epoch-0010")
    state = model.state_dict()
    assert set(report.loaded) == {name for name in state if name.startswith("h_encoder.")}
    assert set(report.loaded) | set(report.kept) == set(state)
    assert set(report.unused) == set(entries) - set(report.loaded)
    assert all(torch.equal(state[name], entries[name]) for name in report.loaded)
    assert all(torch.equal(state[name], before[name]) for name in report.kept)
    assert not torch.equal(
        state["h_encoder.encoder_blocks.0.blocks.0.mlp.fc1.weight"],
        before["h_encoder.encoder_blocks.0.blocks.0.mlp.fc1.weight"],
    )


def test_what_is_left_over_is_logged(caplog):
    with caplog.at_level("INFO", "trainer.checkpoints.transfer"):
        load_pretrained_encoder(tiny_classifier(), tiny_model().state_dict(), source="run/epoch-0010")
    assert "run/epoch-0010" in caplog.text
    assert "not used: mask_token" in caplog.text
    assert "keep their values: norm.weight, norm.bias, cls_head_finetune.0.weight" in caplog.text


def test_the_recorded_pretraining_checkpoint_goes_into_the_recorded_classifier():
    model = recorded_classifier("modelnet40")
    path = shared_dir("reference") / "pretrain_ckpt.pth"
    entries = torch.load(path, map_location="cpu", weights_only=True)["base_model"]
    report = load_pretrained_encoder(model, entries, source=path.name)
    name = "h_encoder.token_embed.0.first_conv.1.running_mean"
    assert torch.equal(model.state_dict()[name], entries[f"module.{name}"])
    assert {name.split(".")[0] for name in report.kept} == {"norm", "cls_head_finetune"}
    assert not [n for n in report.unused if n.startswith("h_encoder.") and not n.startswith("h_encoder.encoder_norms.")]
    assert "mask_token" in report.unused


def test_a_checkpoint_without_any_encoder_weight_is_refused():
    model = tiny_classifier()
    before = copied(model)
    entries = {f"student.{name}": value for name, value in tiny_model().state_dict().items()}
    with pytest.raises(
        ValueError,
        match=r"last\.pth: none of its \d+ entries is .* encoder weights; expected names such as "
        r"h_encoder\.token_embed.*, found student\.mask_token, .* and \d+ more",
    ):
        load_pretrained_encoder(model, entries, source="last.pth")
    assert untouched(model, before)


def test_the_whole_file_instead_of_its_state_dict_is_refused():
    with pytest.raises(ValueError, match=r"found base_model, epoch\. Pass the state dict itself"):
        load_pretrained_encoder(tiny_classifier(), {"base_model": torch.ones(1), "epoch": torch.ones(1)}, source="f")


def test_missing_unexpected_and_misshapen_entries_are_named_together():
    entries = dict(tiny_model().state_dict())
    del entries["h_encoder.encoder_blocks.2.blocks.0.norm1.bias"]
    entries["h_encoder.encoder_blocks.0.blocks.1.norm1.bias"] = torch.zeros(12)
    entries["h_encoder.encoder_pos_embeds.1.0.bias"] = torch.zeros(7)
    model = tiny_classifier()
    before = copied(model)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - its text is checked in full
        load_pretrained_encoder(model, entries, source="last.pth")
    assert str(caught.value) == (
        "last.pth: its encoder does not fit the model, so nothing was loaded:\n"
        "  missing h_encoder.encoder_blocks.2.blocks.0.norm1.bias\n"
        "  unexpected h_encoder.encoder_blocks.0.blocks.1.norm1.bias\n"
        "  h_encoder.encoder_pos_embeds.1.0.bias has shape (7,), expected (20,)\n"
        "Create the model with the [model] settings that the checkpoint was trained with."
    )
    assert untouched(model, before)


def test_a_name_with_and_without_the_prefix_is_refused():
    entries = tiny_model().state_dict()
    with pytest.raises(ValueError, match=r"with and without the prefix `module\.`: module\.mask_token"):
        load_pretrained_encoder(
            tiny_classifier(), {**entries, "module.mask_token": entries["mask_token"]}, source="last.pth"
        )
