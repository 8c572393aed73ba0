"""Students to test with: the recorded ones with their weights and teacher maps, and a tiny one with made-up maps."""

import zlib
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cuda.project import project
from tests.support.reference import reference_arrays, reference_json, shared_dir
from trainer.maps import TeacherMaps
from trainer.model import I2PMAE
from trainer.model_config import MaskingConfig, ModelConfig

TINY = ModelConfig(
    groups=(48, 24, 8),
    neighbours=(8, 4, 4),
    embed_first=(16, 16),
    encoder_dims=(12, 24, 24),
    encoder_depths=(1, 2, 1),
    decoder_dims=(24, 12),
    heads=2,
    drop_path=0.2,
)
TINY_CHANNELS = 6


def tiny_model(seed: int = 0, masking: MaskingConfig | None = None, **settings: Any) -> I2PMAE:
    """The tiny student, weights drawn from `seed`."""
    config = ModelConfig(**{**{f: getattr(TINY, f) for f in TINY.__dataclass_fields__}, **settings})
    model = I2PMAE(config, masking or MaskingConfig(ratio=0.7), teacher_channels=TINY_CHANNELS)
    model.initialise(torch.Generator().manual_seed(seed))
    return model


def tiny_batch(seed: int = 0, batch: int = 4, points: int = 96) -> tuple[Tensor, TeacherMaps]:
    """Random clouds in the unit ball and random smooth-sized teacher maps for them."""
    generator = torch.Generator().manual_seed(seed)
    cloud = torch.randn(batch, points, 3, generator=generator)
    cloud = cloud / cloud.norm(dim=2).amax(1)[:, None, None]
    features = torch.randn(batch, 3, 16, TINY_CHANNELS, generator=generator)
    saliency = torch.rand(batch, 3, 16, generator=generator)
    _, geometry = project(cloud, image_side=64)
    return cloud, TeacherMaps(features, saliency, geometry, 64)


def assert_same(got: dict[str, Tensor], expected: dict[str, Tensor], *, rel: float = 2e-4, floor: float = 2e-4) -> None:
    """Tensors of the same names whose difference is small in norm.

    rel    measured: sums in another order move the tiny student's gradients by up to 3e-5 of their norm.
    floor  gradients of biases in front of a batch norm are zero up to noise, and differ by 1e-5 in norm.
    """
    assert got.keys() == expected.keys()
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


def recorded_model(**settings: Any) -> I2PMAE:
    """The recorded small student with the recorded weights."""
    config, masking = recorded_config(**settings)
    channels = reference_json("config")["config"]["clip"]["embed_dim"]
    model = I2PMAE(config, masking, teacher_channels=channels)
    path = shared_dir("reference") / "pretrain_ckpt.pth"
    entries = torch.load(path, map_location="cpu", weights_only=True)["base_model"]
    model.load_state_dict(without_teacher({name.removeprefix("module."): value for name, value in entries.items()}))
    return model


def without_teacher(entries: dict[str, Any]) -> dict[str, Any]:
    """The student's entries of one of the reference's state dicts."""
    return {name: value for name, value in entries.items() if not name.startswith("clip_model.")}


def recorded_batch() -> tuple[dict[str, np.ndarray], Tensor, TeacherMaps]:
    """The arrays of model_pretrain.npz, its clouds, and its teacher maps with the geometry projected anew."""
    arrays = reference_arrays("model_pretrain")
    points = torch.from_numpy(arrays["pts"])
    B = points.shape[0]
    features = torch.from_numpy(arrays["teacher_feats"])  # [V * B, C, side, side], all of view 0 first
    features = features.view(3, B, features.shape[1], -1).permute(1, 0, 3, 2).contiguous()
    saliency = torch.from_numpy(arrays["teacher_sal"]).view(3, B, -1).transpose(0, 1).contiguous()
    _, geometry = project(points)
    return arrays, points, TeacherMaps(features, saliency, geometry, 224)


def recorded_order(arrays: dict[str, np.ndarray], key: str = "mask_ids") -> Tensor:
    """The drawn order of the top level's tokens, as recorded."""
    return torch.from_numpy(arrays[key].astype(np.int64))


def closed_formula(name: str, shape: tuple[int, ...], salt: str) -> np.ndarray:
    """The full-size models' weights, float32, from the formula in the reference folder's README."""
    n = int(np.prod(shape, dtype=np.int64))
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if name.endswith("logit_scale"):
        return np.full(shape, np.log(1 / 0.07), np.float32)
    h = np.arange(n, dtype=np.uint32) * np.uint32(0x9E3779B1) + np.uint32(zlib.crc32(f"{salt}:{name}".encode("ascii")))
    h ^= h >> np.uint32(16)
    h *= np.uint32(0x85EBCA6B)
    h ^= h >> np.uint32(13)
    h *= np.uint32(0xC2B2AE35)
    h ^= h >> np.uint32(16)
    u = h / 2.0**31 - 1
    if name.endswith("running_mean"):
        value = 0.1 * u
    elif name.endswith("running_var"):
        value = 1 + 0.5 * u
    elif len(shape) >= 2:
        value = u * np.sqrt(3 / (n / shape[0]))
    elif name.endswith("weight"):
        value = 1 + 0.2 * u
    else:
        value = 0.1 * u
    return value.astype(np.float32).reshape(shape)


def fill_by_formula(model: nn.Module, salt: str) -> float:
    """Give a model the closed formula's weights; returns their checksum, the sum of absolute values in float64."""
    state = model.state_dict()
    filled = {name: closed_formula(name, tuple(value.shape), salt) for name, value in state.items()}
    model.load_state_dict({name: torch.from_numpy(np.asarray(value)) for name, value in filled.items()})
    return float(sum(np.abs(value.astype(np.float64)).sum() for value in filled.values()))
