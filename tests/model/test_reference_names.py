"""Which parameters the student has where; that they are the reference's is compared in tests/parity."""

import pytest
import torch

from trainer.model import I2PMAE
from trainer.model_config import MaskingConfig, ModelConfig


def test_only_norms_that_no_loss_reaches_are_frozen():
    with torch.device("meta"):
        model = I2PMAE(ModelConfig.reference(), MaskingConfig(), teacher_channels=512)
    frozen = [name for name, value in model.named_parameters() if not value.requires_grad]
    assert frozen == ["h_encoder.encoder_norms.0.weight", "h_encoder.encoder_norms.0.bias"]


@pytest.mark.parametrize(("targets", "absent"), [("3d", "rec_head_2d"), ("2d", "rec_head_3d")])
def test_a_head_without_a_target_does_not_exist(targets, absent):
    with torch.device("meta"):
        model = I2PMAE(ModelConfig(targets=targets), MaskingConfig(mode="random"), teacher_channels=8)
    assert not any(name.startswith(absent) for name in model.state_dict())
