"""The full-size student has the reference's parameters: names, order, shapes, types, counts."""

import pytest
import torch

from tests.support.models import without_teacher
from tests.support.reference import reference_json, shared_dir
from trainer.model import I2PMAE
from trainer.model_config import MaskingConfig, ModelConfig
from trainer.optim import no_decay_names


@pytest.fixture(scope="module")
def full() -> I2PMAE:
    with torch.device("meta"):
        return I2PMAE(ModelConfig.reference(), MaskingConfig(), teacher_channels=512)


@pytest.fixture(scope="module")
def facts() -> dict:
    return reference_json("params")["pretrain"]


def test_state_dict_is_the_references(full, facts):
    ours = {
        name: [list(value.shape), str(value.dtype).removeprefix("torch.")] for name, value in full.state_dict().items()
    }
    assert ours == facts["state_dict"]
    assert list(ours) == list(facts["state_dict"])


def test_parameter_counts(full, facts):
    assert sum(p.numel() for p in full.parameters()) == facts["parameters"] == 17_622_808
    assert sum(p.numel() for p in full.h_encoder.parameters()) == facts["encoder_parameters"] == 12_654_976


def test_weight_decay_groups(full, facts):
    named = dict(full.named_parameters())
    spared = no_decay_names(named.items(), "reference")
    assert set(spared) == set(facts["no_decay_names"])
    decayed = [name for name in named if name not in set(spared)]
    assert {"decay": len(decayed), "no_decay": len(spared)} == facts["tensors"]
    assert sum(named[n].numel() for n in decayed) == facts["elements"]["decay"]
    assert sum(named[n].numel() for n in spared) == facts["elements"]["no_decay"]


def test_only_norms_that_no_loss_reaches_are_frozen(full):
    frozen = [name for name, value in full.named_parameters() if not value.requires_grad]
    assert frozen == ["h_encoder.encoder_norms.0.weight", "h_encoder.encoder_norms.0.bias"]


def test_recorded_checkpoint_has_the_same_names():
    entries = torch.load(shared_dir("reference") / "pretrain_ckpt.pth", map_location="cpu", weights_only=True)
    names = without_teacher({name.removeprefix("module."): 0 for name in entries["base_model"]})
    sizes = reference_json("config")["config"]["pre"]
    config = ModelConfig.reference(
        encoder_depths=tuple(sizes["encoder_depths"]), decoder_depths=tuple(sizes["decoder_depths"])
    )
    with torch.device("meta"):
        assert list(I2PMAE(config, MaskingConfig(), teacher_channels=8).state_dict()) == list(names)


@pytest.mark.parametrize(("targets", "absent"), [("3d", "rec_head_2d"), ("2d", "rec_head_3d")])
def test_a_head_without_a_target_does_not_exist(targets, absent):
    with torch.device("meta"):
        model = I2PMAE(ModelConfig(targets=targets), MaskingConfig(mode="random"), teacher_channels=8)
    assert not any(name.startswith(absent) for name in model.state_dict())
