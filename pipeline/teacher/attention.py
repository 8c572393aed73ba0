"""The forward pass of an open_clip vision tower, with the last block's class attention.

open_clip's own forward gives neither the patch tokens after the projection nor any attention weights, and asking
`nn.MultiheadAttention` for weights computes the whole [T + 1, T + 1] matrix of every head. Here queries, keys and
values are computed once; the output goes through torch's fused attention, and of the weights only the class token's
row is formed.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["class_features", "class_problem", "patch_features", "token_features", "tower_problem", "view_features"]


def tower_problem(tower: nn.Module) -> str | None:
    """Return why this vision tower cannot be a teacher, or None if it can."""
    from open_clip.transformer import ResidualAttentionBlock, VisionTransformer

    if not isinstance(tower, VisionTransformer):
        return f"its vision tower is a {type(tower).__name__}, not a VisionTransformer"
    if tower.attn_pool is not None:
        return f"its vision tower pools through {type(tower.attn_pool).__name__}, so no token is the class token"
    for block in tower.transformer.resblocks:
        if type(block) is not ResidualAttentionBlock or type(block.attn) is not nn.MultiheadAttention:
            return f"its blocks are {type(block).__name__} with {type(block.attn).__name__}"
    if tower.image_size[0] != tower.image_size[1] or tower.patch_size[0] != tower.patch_size[1]:
        return f"its images {tower.image_size} or patches {tower.patch_size} are not square"
    return None


def class_problem(tower: Any) -> str | None:
    """Return why this tower's class token is meaningless, or None if it is the image's feature."""
    kind = getattr(tower, "pool_type", "tok")
    if kind != "tok":
        return (
            f"its tower pools by {kind!r}, not by the class token, so that token was not trained to summarise the image"
        )
    return None


@torch.no_grad()
def patch_features(tower: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the features of every patch, and the class token's attention to it in the last block.

    tower   an open_clip VisionTransformer that `tower_problem` accepts, in evaluation mode.
    images  [M, 3, S, S] in the dtype of the tower's convolution, normalised.
    ->      features [M, T, C] float32: patch tokens after ln_post and the projection.
            saliency [M, T] float32: softmax over class and patch tokens, mean over heads, the class column dropped.

    An image's result depends on that image alone: to the bit for a given M and number of threads, to rounding between
    different ones (to the bit as well on the measured CPU, AVX-512 with MKL: docs/teacher.md).
    """
    tokens, query, key = _forward(tower, images)
    features = tower.ln_post(tokens[:, 1:]) @ tower.proj  # [M, T, C]
    return features.float(), _class_row(query, key)[:, 1:]


@torch.no_grad()
def view_features(tower: Any, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute patch_features' results, to the bit, and the class token, in one forward pass.

    tower, images  as of patch_features.
    ->             features [M, T, C], saliency [M, T], and the class token [M, C] after ln_post and the projection, not
                   normalised, all float32. An image's class token does not depend on M, not even in its rounding.
    """
    tokens, query, key = _forward(tower, images)
    features = tower.ln_post(tokens[:, 1:]) @ tower.proj  # [M, T, C]
    # One product an image: BLAS picks the routine of a product, and so its rounding, by its number of rows.
    classes = [row @ tower.proj for row in tower.ln_post(tokens[:, 0])]
    stacked = torch.stack(classes) if classes else features.new_empty(0, features.shape[2])
    return features.float(), _class_row(query, key)[:, 1:], stacked.float()


@torch.no_grad()
def class_features(tower: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the class token's feature, and its attention to all tokens in the last block.

    tower, images  as of patch_features.
    ->             feature [M, C] float32: the class token after ln_post and the projection, not normalised;
                   CLIP's image feature where the tower pools by it, as OpenAI's do.
                   attention [M, T + 1] float32, mean over heads, rows sum to 1: column 0 is the class token itself,
                   the others are patch_features' saliency.
    """
    tokens, query, key = _forward(tower, images)
    return (tower.ln_post(tokens[:, 0]) @ tower.proj).float(), _class_row(query, key)


@torch.no_grad()
def token_features(tower: Any, images: Tensor) -> Tensor:
    """Compute class and patch tokens after ln_post and the projection -> [M, T + 1, C] float32, class token first.

    tower, images  as of patch_features; equal to it and to class_features up to rounding, at the price of one of them.
    """
    tokens, _, _ = _forward(tower, images)
    return (tower.ln_post(tokens) @ tower.proj).float()


def _forward(tower: Any, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Run all blocks -> tokens [M, T + 1, D], and the last block's queries and keys."""
    tokens = _embed(tower, images)
    blocks = tower.transformer.resblocks
    for block in blocks[:-1]:
        tokens, _, _ = _block(block, tokens)
    return _block(blocks[-1], tokens)


def _embed(tower: Any, images: Tensor) -> Tensor:
    """Embed patches, class token and positions -> [M, T + 1, D].

    The convolution's stride is its kernel, so it is one matrix product. That keeps it out of cuDNN, whose float32
    convolutions use TF32 unless told otherwise.
    """
    M, _, S, _ = images.shape
    P = tower.patch_size[0]
    side = S // P
    patches = images.reshape(M, 3, side, P, side, P).permute(0, 2, 4, 1, 3, 5).reshape(M, side * side, 3 * P * P)
    tokens = F.linear(patches, tower.conv1.weight.flatten(1), tower.conv1.bias)  # [M, T, D]
    first = tower.class_embedding.to(tokens.dtype).expand(M, 1, -1)
    tokens = torch.cat([first, tokens], dim=1) + tower.positional_embedding.to(tokens.dtype)
    return tower.ln_pre(tokens)


def _block(block: Any, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Run one residual block -> its output [M, T + 1, D], and its queries and keys [M, heads, T + 1, D / heads]."""
    M, L, D = tokens.shape
    attention = block.attn
    heads = attention.num_heads
    joint = F.linear(block.ln_1(tokens), attention.in_proj_weight, attention.in_proj_bias)  # [M, L, 3 D]
    query, key, value = joint.view(M, L, 3, heads, D // heads).permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(M, L, D)
    tokens = tokens + block.ls_1(attention.out_proj(mixed))
    return tokens + block.ls_2(block.mlp(block.ln_2(tokens))), query, key


def _class_row(query: Tensor, key: Tensor) -> Tensor:
    """Compute row 0 of softmax(query key^T / sqrt(d)), mean over heads -> [M, T + 1] float32."""
    row = query[:, :, :1].float() * query.shape[-1] ** -0.5
    # Not a matrix product: for one row, BLAS chooses its routine, and thus its rounding, by the number of images.
    weights = (row * key.float()).sum(dim=-1).softmax(dim=-1)  # [M, heads, T + 1]
    return weights.mean(dim=1)
