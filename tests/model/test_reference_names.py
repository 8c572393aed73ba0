"""Which parameters the student has where; that they are the reference's is compared in tests/parity."""

import pytest
import torch

from tests.support.models import SIZES, THREE_STAGES
from trainer.models.config import MaskingConfig, ModelConfig
from trainer.models.hierarchical.student import I2PMAE


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


def reference_shapes(config: ModelConfig, channels: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the student's parameters, written down from docs/method.md and the reference's names."""
    found: dict[str, tuple[int, ...]] = {}

    def linear(name: str, into: int, out: int, *, bias: bool = True, conv: bool = False) -> None:
        found[f"{name}.weight"] = (out, into, 1) if conv else (out, into)
        if bias:
            found[f"{name}.bias"] = (out,)

    def norm(name: str, width: int) -> None:
        found[f"{name}.weight"] = found[f"{name}.bias"] = (width,)

    def block(name: str, width: int) -> None:
        norm(f"{name}.norm1", width)
        norm(f"{name}.norm2", width)
        linear(f"{name}.attn.qkv", width, 3 * width, bias=False)
        linear(f"{name}.attn.proj", width, width)
        linear(f"{name}.mlp.fc1", width, int(width * config.mlp_ratio))
        linear(f"{name}.mlp.fc2", int(width * config.mlp_ratio), width)

    def level(blocks: str, position: str, width: int, depth: int) -> None:
        for j in range(depth):
            block(f"{blocks}.blocks.{j}", width)
        linear(f"{position}.0", 3, width)
        linear(f"{position}.2", width, width)

    found["mask_token"] = (1, config.decoder_dims[0])
    below = 3
    for i, (width, depth) in enumerate(zip(config.encoder_dims, config.encoder_depths, strict=True)):
        name = f"h_encoder.token_embed.{i}"
        first, second = config.embed_first if i == 0 else (below, below)
        hidden = 2 * second if i == 0 else width
        linear(f"{name}.first_conv.0", below, first, conv=True)
        norm(f"{name}.first_conv.1", first)
        linear(f"{name}.first_conv.3", first, second, conv=True)
        linear(f"{name}.second_conv.0", 2 * second, hidden, conv=True)
        norm(f"{name}.second_conv.1", hidden)
        linear(f"{name}.second_conv.3", hidden, width, conv=True)
        level(f"h_encoder.encoder_blocks.{i}", f"h_encoder.encoder_pos_embeds.{i}", width, depth)
        norm(f"h_encoder.encoder_norms.{i}", width)
        below = width
    for i, (width, depth) in enumerate(zip(config.decoder_dims, config.decoder_depths, strict=True)):
        level(f"h_decoder.{i}", f"decoder_pos_embeds.{i}", width, depth)
        if i:
            name = f"token_prop.{i - 1}"
            linear(f"{name}.fuse.net.0", config.encoder_dims[-1 - i] + config.decoder_dims[i - 1], width, conv=True)
            norm(f"{name}.fuse.net.1", width)
            for j in range(config.decoder_up_blocks[i - 1]):
                for part in ("net1", "net2"):
                    linear(f"{name}.extraction.operation.{j}.{part}.0", width, width, conv=True)
                    norm(f"{name}.extraction.operation.{j}.{part}.1", width)
    norm("decoder_norm", config.decoder_dims[-1])
    K = config.neighbours[config.target_level]
    linear("rec_head_3d", config.decoder_dims[-1], 3 * K, conv=True)
    linear("rec_head_2d", config.decoder_dims[-1], 3 * K * channels, conv=True)
    return found


@pytest.mark.parametrize("config", [SIZES, THREE_STAGES, ModelConfig.reference()], ids=["two", "three", "paper"])
def test_names_and_shapes_where_no_two_sizes_agree(config):
    with torch.device("meta"):
        model = I2PMAE(config, MaskingConfig(), teacher_channels=13)
    assert {name: tuple(value.shape) for name, value in model.named_parameters()} == reference_shapes(config, 13)
