"""Students to test with: a tiny one with made-up maps, and the sizes of the recorded one."""

from typing import Any

import torch
from torch import Tensor

from cuda.project import project
from cuda.token_maps import TokenMaps
from tests.support.reference import reference_json
from trainer.models.config import MaskingConfig, ModelConfig
from trainer.models.hierarchical.student import I2PMAE

TINY = ModelConfig(
    groups=(48, 24, 8),
    neighbours=(8, 4, 4),
    embed_first=(16, 16),
    encoder_dims=(12, 20, 26),
    encoder_depths=(1, 2, 1),
    decoder_dims=(26, 20),
    heads=2,
    drop_path=0.2,
)
TINY_CHANNELS = 6
SIZES = ModelConfig(
    groups=(34, 19, 9),
    neighbours=(8, 5, 4),
    embed_first=(10, 14),
    encoder_dims=(12, 21, 39),
    encoder_depths=(1, 3, 2),
    decoder_dims=(39, 27),
    decoder_depths=(2, 1),
    decoder_up_blocks=(2,),
    heads=3,
    mlp_ratio=2.0,
    drop_path=0.4,
)
THREE_STAGES = ModelConfig(
    groups=(30, 22, 15, 7),
    neighbours=(6, 7, 5, 4),
    embed_first=(9, 11),
    encoder_dims=(10, 16, 18, 26),
    encoder_depths=(2, 1, 1, 1),
    decoder_dims=(26, 14, 22),
    decoder_depths=(1, 2, 1),
    decoder_up_blocks=(0, 1),
    heads=2,
    mlp_ratio=3.0,
    drop_path=0.3,
)
"""Students in which no two sizes agree that agree in the paper's: widths that do not double, depths, neighbours."""


def tiny_model(seed: int = 0, masking: MaskingConfig | None = None, **settings: Any) -> I2PMAE:
    """The tiny student, weights drawn from `seed`."""
    config = ModelConfig(**{**{f: getattr(TINY, f) for f in TINY.__dataclass_fields__}, **settings})
    model = I2PMAE(config, masking or MaskingConfig(ratio=0.7), teacher_channels=TINY_CHANNELS)
    model.initialise(torch.Generator().manual_seed(seed))
    return model


def tiny_batch(seed: int = 0, batch: int = 4, points: int = 96) -> tuple[Tensor, TokenMaps]:
    """Random clouds in the unit ball and random smooth-sized teacher maps for them."""
    generator = torch.Generator().manual_seed(seed)
    cloud = torch.randn(batch, points, 3, generator=generator)
    cloud = cloud / cloud.norm(dim=2).amax(1)[:, None, None]
    features = torch.randn(batch, 3, 16, TINY_CHANNELS, generator=generator)
    saliency = torch.rand(batch, 3, 16, generator=generator)
    _, geometry = project(cloud, image_side=64)
    return cloud, TokenMaps(features, saliency, geometry, 64)


def assert_same(got: dict[str, Tensor], expected: dict[str, Tensor], *, rel: float = 2e-4, floor: float = 2e-5) -> None:
    """Tensors of the same names whose difference is small in norm.

    rel    measured: sums in another order move the tiny student's gradients by up to 3e-5 of their norm.
    floor  of the largest norm among them: gradients of biases in front of a batch norm are zero up to noise that grows
           with the gradients they are sums of. 4e-6 of the largest seen.
    """
    assert got.keys() == expected.keys()
    floor *= max(value.double().norm().item() for value in expected.values())
    for name, value in expected.items():
        apart, norm = (got[name].double() - value.double()).norm().item(), value.double().norm().item()
        assert apart <= rel * norm + floor, f"{name}: differs by {apart:.3g} of {norm:.3g}"


def recorded_config(**settings: Any) -> tuple[ModelConfig, MaskingConfig]:
    """The settings of the recorded small student: the reference's behaviour, drop path off as it was recorded."""
    sizes = reference_json("config")["config"]["pre"]
    config = ModelConfig.reference(
        groups=tuple(sizes["num_groups"]),
        neighbours=tuple(sizes["group_sizes"]),
        encoder_dims=tuple(sizes["encoder_dims"]),
        encoder_depths=tuple(sizes["encoder_depths"]),
        decoder_dims=tuple(sizes["decoder_dims"]),
        decoder_depths=tuple(sizes["decoder_depths"]),
        decoder_up_blocks=tuple(sizes["decoder_up_blocks"])[: len(sizes["decoder_dims"]) - 1],
        heads=sizes["num_heads"],
        **{"drop_path": 0.0, **settings},
    )
    return config, MaskingConfig(ratio=sizes["mask_ratio"])
