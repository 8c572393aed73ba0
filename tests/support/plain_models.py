"""The student and the fine-tuning models once more, as slow as the definition: token by token, sample by sample.

Written from the method's description in docs/method.md, in float64, with nothing of the trainer but its geometry
(`tokenise`, tested by itself), its look-up (`backproject`) and the names of its parameters. No padding, no layout, no
batch; statistics of batch norms are the running ones.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cuda.backproject import backproject
from cuda.token_maps import TokenMaps
from trainer.models.tokens.grouping import Level, tokenise

__all__ = ["PlainEncoder", "plain_classifier", "plain_feature", "plain_losses", "plain_segmenter"]

Look = Callable[[int, Tensor], Tensor]
"""(level, centres [L, 3]) -> [L, L] bool: which token (row) sees which (column)."""


class _Weights:
    def __init__(self, model: Any):
        self.values = {name: value.detach().double() for name, value in model.state_dict().items()}

    def linear(self, name: str, x: Tensor) -> Tensor:
        weight = self.values[f"{name}.weight"]
        weight = weight[:, :, 0] if weight.ndim == 3 else weight
        bias = self.values.get(f"{name}.bias")
        return x @ weight.T + (0 if bias is None else bias)

    def batch_norm(self, name: str, x: Tensor) -> Tensor:
        mean, variance = self.values[f"{name}.running_mean"], self.values[f"{name}.running_var"]
        return (x - mean) / (variance + 1e-5).sqrt() * self.values[f"{name}.weight"] + self.values[f"{name}.bias"]

    def layer_norm(self, name: str, x: Tensor) -> Tensor:
        spread = (x - x.mean(-1, keepdim=True)).square().mean(-1, keepdim=True)
        x = (x - x.mean(-1, keepdim=True)) / (spread + 1e-5).sqrt()
        return x * self.values[f"{name}.weight"] + self.values[f"{name}.bias"]

    def position(self, name: str, centres: Tensor) -> Tensor:
        return self.linear(f"{name}.2", F.gelu(self.linear(f"{name}.0", centres)))

    def block(self, name: str, x: Tensor, heads: int, sees: Tensor | None, kept: tuple[float, float]) -> Tensor:
        normed = self.layer_norm(f"{name}.norm1", x)
        L, D = x.shape
        q, k, v = self.linear(f"{name}.attn.qkv", normed).split(D, dim=1)
        mixed = []
        for part in range(heads):
            at = slice(part * D // heads, (part + 1) * D // heads)
            scores = q[:, at] @ k[:, at].T / (D // heads) ** 0.5
            if sees is not None:
                scores = scores.masked_fill(~sees, -torch.inf)
            mixed.append(scores.softmax(1) @ v[:, at])
        x = x + kept[0] * self.linear(f"{name}.attn.proj", torch.cat(mixed, 1))
        hidden = F.gelu(self.linear(f"{name}.mlp.fc1", self.layer_norm(f"{name}.norm2", x)))
        return x + kept[1] * self.linear(f"{name}.mlp.fc2", hidden)

    def blocks(
        self, name: str, x: Tensor, position: Tensor, heads: int, depth: int, sees: Tensor | None, kept: list[Any]
    ) -> Tensor:
        for i in range(depth):
            x = self.block(f"{name}.blocks.{i}", x + position, heads, sees, kept[i])
        return x

    def embed(self, name: str, members: Tensor) -> Tensor:
        """[K, in] -> [out]."""
        x = self.batch_norm(f"{name}.first_conv.1", self.linear(f"{name}.first_conv.0", members)).relu()
        own = self.linear(f"{name}.first_conv.3", x)
        joint = torch.cat((own.max(0, keepdim=True).values.expand(own.shape), own), 1)
        x = self.batch_norm(f"{name}.second_conv.1", self.linear(f"{name}.second_conv.0", joint)).relu()
        return self.linear(f"{name}.second_conv.3", x).max(0).values


class PlainEncoder:
    """The hierarchical encoder of any of the three models, for one cloud."""

    def __init__(self, model: Any, config: Any):
        self.weights, self.config = _Weights(model), config

    def __call__(
        self, points: Tensor, levels: list[Level], visible: list[list[int]], look: Look | None, kept: list[Any]
    ) -> list[dict[int, Tensor]]:
        """points [N, 3]; visible: tokens of each level -> token -> what the blocks make of it, a level, not normed."""
        below: dict[int, Tensor] = {}
        encoded, first = [], 0
        for i, (level, here) in enumerate(zip(levels, visible, strict=True)):
            name = f"h_encoder.token_embed.{i}"
            tokens = []
            for g in here:
                members = level.members[0, g].tolist()
                if i == 0:
                    tokens.append(self.weights.embed(name, points[members].double() - level.centres[0, g].double()))
                else:
                    tokens.append(self.weights.embed(name, torch.stack([below[m] for m in members])))
            centres = level.centres[0, here].double()
            position = self.weights.position(f"h_encoder.encoder_pos_embeds.{i}", centres)
            depth = self.config.encoder_depths[i]
            x = self.weights.blocks(
                f"h_encoder.encoder_blocks.{i}", torch.stack(tokens), position, self.config.heads, depth,
                None if look is None else look(i, centres), kept[first : first + depth],
            )  # fmt: skip
            first += depth
            below = dict(zip(here, x, strict=True))
            encoded.append(below)
        return encoded

    def normed(self, level: int, tokens: dict[int, Tensor], name: str = "h_encoder.encoder_norms.{}") -> Tensor:
        return self.weights.layer_norm(name.format(level), torch.stack(list(tokens.values())))


def _chances(depths: tuple[int, ...], largest: float) -> list[float]:
    total = sum(depths)
    return [largest * i / (total - 1) if total > 1 else 0.0 for i in range(total)]


def _kept(config: Any, drop_path: Tensor | None) -> list[tuple[float, float]]:
    """A factor for both branches of every block, the encoder's first. drop_path [R] uniform numbers."""
    chances = _chances(config.encoder_depths, config.drop_path) + _chances(config.decoder_depths, config.drop_path)
    if drop_path is None:
        return [(1.0, 1.0)] * len(chances)
    pairs = drop_path.view(-1, 2).tolist()
    return [
        tuple((1 / (1 - chance) if number < 1 - chance else 0.0) for number in pair)  # type: ignore[misc]
        for pair, chance in zip(pairs, chances, strict=True)
    ]


def _interpolated(fine: Tensor, coarse: Tensor, values: Tensor) -> Tensor:
    """[G, 3], [H, 3], [H, D] -> [G, D]: inverse squared distance over the 3 nearest."""
    rows = []
    for point in fine:
        dist2 = (coarse - point).square().sum(1)
        nearest = dist2.topk(3, largest=False)
        share = 1 / (nearest.values + 1e-8)
        rows.append((share[:, None] * values[nearest.indices]).sum(0) / share.sum())
    return torch.stack(rows)


def _whole(levels: list[Level]) -> list[list[int]]:
    return [list(range(level.centres.shape[1])) for level in levels]


def _one(cloud: Tensor, config: Any) -> list[Level]:
    return tokenise(cloud[None], config)[0]


def plain_feature(model: Any, points: Tensor, feature: str) -> Tensor:
    """An evaluation feature, [B, D] float64, with numpy's statistics."""
    encoder = PlainEncoder(model, model.config)
    rows = []
    for cloud in points:
        levels = _one(cloud, model.config)
        visible = _whole(levels)
        if model.config.eval_hide_unused:
            for i in range(len(levels) - 1, 0, -1):
                visible[i - 1] = sorted(set(levels[i].members[0, visible[i]].flatten().tolist()))
        encoded = encoder(cloud, levels, visible, None, _kept(model.config, None))
        tokens = [encoder.normed(i, here).numpy() for i, here in enumerate(encoded)]
        if feature == "top":
            row = tokens[-1].max(0)
        else:
            row = np.concatenate([number for x in tokens for number in (x.max(0), x.mean(0), x.std(0))])
        rows.append(torch.from_numpy(row))
    return torch.stack(rows)


def plain_losses(
    model: Any, points: Tensor, canonical: Tensor, maps: TokenMaps, order: Tensor, drop_path: Tensor | None = None
) -> tuple[float, float]:
    """Both losses of a batch, in evaluation mode but for drop path.

    order  [B, G] the order in which top-level tokens are drawn to stay visible.
    """
    config = model.config
    encoder = PlainEncoder(model, config)
    weights, target = encoder.weights, config.target_level
    distances: list[float] = []
    errors: list[float] = []
    for b, cloud in enumerate(points):
        levels = _one(cloud, config)
        visible = [sorted(order[b, : model.masking.visible(config.groups[-1])].tolist())]
        for level in reversed(levels[1:]):
            visible.insert(0, sorted({m for g in visible[0] for m in level.members[0, g].tolist()}))
        kept = _kept(config, None if drop_path is None else drop_path[b])
        encoded = encoder(cloud, levels, visible, None, kept)
        x = weights.values["mask_token"].expand(config.groups[-1], -1).clone()
        x[visible[-1]] = encoder.normed(len(levels) - 1, encoded[-1])
        first = sum(config.encoder_depths)
        for stage, depth in enumerate(config.decoder_depths):
            at = len(levels) - 1 - stage
            centres = levels[at].centres[0].double()
            if stage:
                fine = torch.zeros(config.groups[at], config.encoder_dims[at], dtype=torch.float64)
                fine[visible[at]] = encoder.normed(at, encoded[at])
                raised = _interpolated(centres, levels[at + 1].centres[0].double(), x)
                name = f"token_prop.{stage - 1}"
                x = weights.linear(f"{name}.fuse.net.0", torch.cat((fine, raised), 1))
                x = F.gelu(weights.batch_norm(f"{name}.fuse.net.1", x))
                for r in range(config.decoder_up_blocks[stage - 1]):
                    inner = f"{name}.extraction.operation.{r}"
                    y = F.gelu(weights.batch_norm(f"{inner}.net1.1", weights.linear(f"{inner}.net1.0", x)))
                    y = weights.batch_norm(f"{inner}.net2.1", weights.linear(f"{inner}.net2.0", y))
                    x = F.gelu(x + y)
            position = weights.position(f"decoder_pos_embeds.{stage}", centres)
            x = weights.blocks(
                f"h_decoder.{stage}", x, position, config.heads, depth, None, kept[first : first + depth]
            )
            first += depth
        x = weights.layer_norm("decoder_norm", x)
        here, below = levels[target], levels[target - 1]
        for g in range(config.groups[target]):
            members = here.members[0, g].tolist()
            if g not in visible[target]:
                predicted = weights.linear("rec_head_3d", x[g]).view(-1, 3)
                wanted = (below.centres[0, members] - here.centres[0, g]).double()
                dist2 = (predicted[:, None] - wanted[None]).square().sum(2)
                distances += (dist2.min(1).values + dist2.min(0).values).tolist()
            else:
                chosen = [int((cloud == below.centres[0, m]).all(1).nonzero()[0, 0]) for m in members]
                one = TokenMaps(
                    maps.features[b : b + 1], maps.saliency[b : b + 1],
                    type(maps.geometry)(*(part[b : b + 1] for part in maps.geometry)), maps.image_side,
                )  # fmt: skip
                said = backproject(
                    one.features, canonical[b : b + 1, chosen].contiguous(), one.geometry, image_side=one.image_side
                )
                wanted = said[0].flatten(1).flatten().double()  # [K, V, C], in that order
                errors += (weights.linear("rec_head_2d", x[g]) - wanted).square().tolist()
    return float(np.mean(distances)), float(np.mean(errors))


def _within(radius: tuple[float, ...]) -> Look:
    def look(level: int, centres: Tensor) -> Tensor:
        if radius[level] == 0:
            return torch.ones(len(centres), len(centres), dtype=torch.bool)
        near = (centres[:, None] - centres[None]).norm(dim=2) < radius[level]
        return near | torch.eye(len(centres), dtype=torch.bool)

    return look


def _with_neighbours(model: Any) -> Any:
    from dataclasses import replace

    return replace(model.model, neighbours=model.config.neighbours)


def plain_classifier(model: Any, points: Tensor) -> Tensor:
    """Logits [B, classes] float64, in evaluation mode."""
    config = _with_neighbours(model)
    encoder = PlainEncoder(model, config)
    rows = []
    for cloud in points:
        levels = _one(cloud, config)
        encoded = encoder(cloud, levels, _whole(levels), _within(model.config.radius), _kept(config, None))
        if model.config.pooling == "levels":
            normed = [encoder.normed(i, tokens) for i, tokens in enumerate(encoded)]
            x = torch.cat([part for x in normed for part in (x.max(0).values, x.mean(0), x.std(0, correction=0))])
        else:
            tokens = encoder.normed(0, encoded[-1], "norm")
            mean, largest = tokens.mean(0), tokens.max(0).values
            x = torch.cat((mean, largest)) if model.config.pooling == "concat" else mean + largest
        for layer in range(len(model.config.hidden)):
            x = encoder.weights.linear(f"cls_head_finetune.{4 * layer}", x)
            x = encoder.weights.batch_norm(f"cls_head_finetune.{4 * layer + 1}", x).relu()
        rows.append(encoder.weights.linear(f"cls_head_finetune.{4 * len(model.config.hidden)}", x))
    return torch.stack(rows)


def plain_segmenter(model: Any, points: Tensor, category: Tensor) -> Tensor:
    """Log-probabilities [B, N, parts] float64, in evaluation mode."""
    config = _with_neighbours(model)
    encoder = PlainEncoder(model, config)
    weights = encoder.weights
    rows = []
    for cloud, kind in zip(points, category.tolist(), strict=True):
        levels = _one(cloud, config)
        encoded = encoder(cloud, levels, _whole(levels), _within(model.config.radius), _kept(config, None))
        at_points = []
        for i, (level, tokens) in enumerate(zip(levels, encoded, strict=True)):
            raised = _interpolated(cloud.double(), level.centres[0].double(), encoder.normed(i, tokens))
            x = torch.cat((cloud.double(), raised), 1)
            for layer in range(2):
                x = weights.linear(f"propagations.{i}.mlp_convs.{layer}", x)
                x = weights.batch_norm(f"propagations.{i}.mlp_bns.{layer}", x).relu()
            at_points.append(x)
        shape = torch.cat([x.max(0).values + x.mean(0) for x in at_points])
        label = weights.batch_norm("label_conv.1", weights.values["label_conv.0.weight"][:, kind, 0])
        shape = torch.cat((shape, F.leaky_relu(label, 0.2)))
        x = torch.cat((shape.expand(len(cloud), -1), *at_points), 1)
        for layer in (1, 2, 3):
            x = weights.batch_norm(f"bns{layer}", weights.linear(f"convs{layer}", x)).relu()
        rows.append(weights.linear("convs4", x).log_softmax(1))
    return torch.stack(rows)
