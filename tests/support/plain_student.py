"""A plain student to test with, in which no two sizes agree that agree in Point-MAE's, and its slow definition."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.models.config import MaskingConfig, PlainConfig
from trainer.models.plain.student import PlainStudent

PLAIN = PlainConfig(
    groups=13,
    neighbours=7,
    embed_first=(12, 17),
    width=30,
    depth=3,
    heads=5,
    decoder_depth=2,
    decoder_heads=3,
    mlp_ratio=2.5,
    drop_path=0.2,
)
CHANNELS = 6
RELATIVES: dict[str, dict[str, Any]] = {
    "Point-MAE": {},
    "Point-BERT": {"embed_width": 22, "front": "class"},
    "ACT": {"front": "class"},
    "ReCon": {"front": "three", "streams": "two"},
    "PCP-MAE": {"position": "sines"},
    "Point-FEMAE": {"adapters": (0, 2), "adapter_neighbours": 4, "adapter_width": 11},
}
"""Settings of the encoders in the family."""


def plain_student(seed: int = 0, *, masking: MaskingConfig | None = None, whole: bool = False, **settings: Any) -> Any:
    """The student with weights drawn from `seed`, and batch norms that are not fresh."""
    fields = {name: getattr(PLAIN, name) for name in PLAIN.__dataclass_fields__}
    config = PlainConfig(**{**fields, **settings})
    model = PlainStudent(config, masking or MaskingConfig(ratio=0.6), teacher_channels=CHANNELS, whole=whole)
    generator = torch.Generator().manual_seed(seed)
    model.initialise(generator)
    for name, value in model.state_dict().items():
        if name.endswith(("running_mean", "running_var")):
            value.copy_(0.5 + torch.rand(value.shape, generator=generator))
    return model


def defined_groups(points: Tensor, groups: int, neighbours: int) -> tuple[Tensor, Tensor]:
    """Centres [B, G, 3] and neighbourhoods [B, G, K, 3], one cloud and one centre after the other."""
    centres, found = [], []
    for cloud in points.double():
        chosen = [0]
        while len(chosen) < groups:
            nearest = torch.cdist(cloud, cloud[chosen]).min(1).values
            chosen.append(int(nearest.argmax()))
        centres.append(cloud[chosen])
        order = torch.cdist(cloud[chosen], cloud).argsort(1)[:, :neighbours]
        found.append(cloud[order] - cloud[chosen][:, None])
    return torch.stack(centres), torch.stack(found)


def defined_encoding(w: Mapping[str, Tensor], centres: Tensor, hoods: Tensor, config: PlainConfig) -> Tensor:
    """Encoder's output [B, L, D] in float64 and evaluation mode, for the encoder's state dict; standard blocks."""
    tokens = torch.stack([torch.stack([_embed(w, hood) for hood in cloud]) for cloud in hoods])
    position = _mlp(w, "pos_embed", centres)
    x = tokens
    for i in range(config.depth):
        x = defined_block(w, f"blocks.blocks.{i}.", x + position, config.heads)
    return _norm(w, "norm.", x)


def defined_block(w: Mapping[str, Tensor], prefix: str, x: Tensor, heads: int) -> Tensor:
    """One standard block on [B, L, D], head after head."""
    D = x.shape[2]
    q, k, v = (_norm(w, f"{prefix}norm1.", x) @ w[f"{prefix}attn.qkv.weight"].T).split(D, dim=2)
    size = D // heads
    parts = []
    for head in range(heads):
        at = slice(head * size, (head + 1) * size)
        scores = (q[:, :, at] @ k[:, :, at].transpose(1, 2)) / size**0.5
        parts.append(scores.softmax(2) @ v[:, :, at])
    x = x + _linear(w, f"{prefix}attn.proj.", torch.cat(parts, dim=2))
    inner = _linear(w, f"{prefix}mlp.fc1.", _norm(w, f"{prefix}norm2.", x))
    return x + _linear(w, f"{prefix}mlp.fc2.", _gelu(inner))


def defined_decoding(
    w: Mapping[str, Tensor], seen: Tensor, shown: Tensor, unseen: Tensor, config: PlainConfig
) -> Tensor:
    """All decoded tokens [B, V + M, D], visible ones first, for the student's state dict."""
    mask = w["mask_token"].expand(len(seen), unseen.shape[1], -1)
    x, position = torch.cat((seen, mask), dim=1), _mlp(w, "decoder_pos_embed", torch.cat((shown, unseen), dim=1))
    for i in range(config.decoder_depth):
        x = defined_block(w, f"MAE_decoder.blocks.{i}.", x + position, config.decoder_heads)
    return _norm(w, "MAE_decoder.norm.", x)


def defined_chamfer(predicted: Tensor, target: Tensor, *, root: bool) -> float:
    """Point-MAE's cdl2, or cdl1, of [M, K, 3] each."""
    forth, back = 0.0, 0.0
    for a, b in zip(predicted, target, strict=True):
        for x in a:
            nearest = (b - x).square().sum(1).min().item()
            forth += nearest**0.5 if root else nearest
        for y in b:
            nearest = (a - y).square().sum(1).min().item()
            back += nearest**0.5 if root else nearest
    total = (forth + back) / (predicted.shape[0] * predicted.shape[1])
    return total / 2 if root else total


def _embed(w: Mapping[str, Tensor], hood: Tensor) -> Tensor:
    own = hood
    for layer in (0, 1, 3):
        own = _layer(w, f"encoder.first_conv.{layer}.", own)
    both = torch.cat((own.max(0).values.expand_as(own), own), dim=1)
    for layer in (0, 1, 3):
        both = _layer(w, f"encoder.second_conv.{layer}.", both)
    return both.max(0).values


def _layer(w: Mapping[str, Tensor], prefix: str, x: Tensor) -> Tensor:
    if f"{prefix}running_mean" in w:
        scale = (w[f"{prefix}running_var"] + 1e-5).rsqrt() * w[f"{prefix}weight"]
        return ((x - w[f"{prefix}running_mean"]) * scale + w[f"{prefix}bias"]).clamp(min=0)
    return x @ w[f"{prefix}weight"][:, :, 0].T + w[f"{prefix}bias"]


def _linear(w: Mapping[str, Tensor], prefix: str, x: Tensor) -> Tensor:
    return x @ w[f"{prefix}weight"].T + w[f"{prefix}bias"]


def _mlp(w: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return _linear(w, f"{name}.2.", _gelu(_linear(w, f"{name}.0.", x)))


def _gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / 2**0.5)) / 2


def _norm(w: Mapping[str, Tensor], prefix: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w[f"{prefix}weight"], w[f"{prefix}bias"])
