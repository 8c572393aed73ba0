"""The forward pass of a timm vision transformer, with the attention that summarises an image.

Blocks, norms, position embeddings and rotations are timm's own modules. timm's forward pass does not return the
attention to each patch: by the class token in the last block or, if the tower pools by attention (SigLIP, perception
encoders), by the query of that pool. Only that one row of attention is computed.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import TeacherError

__all__ = ["TimmTower", "class_features", "class_problem", "patch_features", "token_features", "view_features"]


class TimmTower:
    """A timm VisionTransformer or Eva, with the three sizes that a teacher asks of its tower.

    net         the timm model, in evaluation mode, made by `pipeline.teacher.timm_tower`
    image_size  (S, S)
    patch_size  (P, P)
    output_dim  C, the width of the blocks: no projection and no classifier stands behind them
    prefix      tokens before the patches: the class token, if there is one, then registers
    """

    def __init__(self, net: Any) -> None:
        self.net = net
        self.image_size: tuple[int, int] = net.patch_embed.img_size
        self.patch_size: tuple[int, int] = net.patch_embed.patch_size
        self.output_dim: int = net.embed_dim
        self.prefix: int = net.num_prefix_tokens


class _Seen(NamedTuple):
    """tokens [M, prefix + T, C] after the last norm; attention weights [M, prefix + T] float32, rows sum to 1."""

    tokens: Tensor
    weights: Tensor


def class_problem(tower: TimmTower) -> str | None:
    """Return why this tower has no class token, or None if `view_features` gives one."""
    net = tower.net
    if net.attn_pool is None and net.global_pool != "token":
        return (
            f"its tower pools by {net.global_pool!r}, not by the class token, so that token was not trained to "
            "summarise the image"
        )
    return None


@torch.no_grad()
def patch_features(tower: TimmTower, images: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the features of every patch, and the attention it receives.

    images  [M, 3, S, S] in the dtype of the tower, normalised.
    ->      features [M, T, C] float32: the patch tokens of timm's `forward_features`, after the last norm.
            saliency [M, T] float32, mean over heads: softmax over all tokens of the class token's attention in the last
            block, class and register columns dropped; for a tower that pools by attention, that of the pool's query.
    """
    seen = _look(tower, images)
    return seen.tokens[:, tower.prefix :].float(), seen.weights[:, tower.prefix :]


@torch.no_grad()
def view_features(tower: TimmTower, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute patch_features' results, and the class token [M, C] float32 after the last norm, not normalised.

    For a tower that pools by attention, the pool's output stands in: it is the image's feature there.
    """
    seen = _look(tower, images)
    features = seen.tokens[:, tower.prefix :].float()
    return features, seen.weights[:, tower.prefix :], _whole(tower, seen.tokens)


@torch.no_grad()
def class_features(tower: TimmTower, images: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the class token [M, C], and its attention in the last block [M, T + 1] float32, registers dropped.

    Raises TeacherError for a tower that pools by attention: its query is no token and attends to no class token.
    """
    if tower.net.attn_pool is not None:
        raise TeacherError(
            "this teacher pools by attention; it has no class token that attends to itself and the patches"
        )
    seen = _look(tower, images)
    own, patches = seen.weights[:, :1], seen.weights[:, tower.prefix :]
    return seen.tokens[:, 0].float(), torch.cat([own, patches], dim=1)


@torch.no_grad()
def token_features(tower: TimmTower, images: Tensor) -> Tensor:
    """Compute class token, or its stand-in (view_features), and patch tokens -> [M, T + 1, C] float32."""
    tokens = _look(tower, images).tokens
    return torch.cat([_whole(tower, tokens)[:, None], tokens[:, tower.prefix :].float()], dim=1)


def _whole(tower: TimmTower, tokens: Tensor) -> Tensor:
    """Return the class token, or the output of the attention pool -> [M, C] float32."""
    net = tower.net
    if net.attn_pool is None:
        return tokens[:, 0].float()
    if not len(tokens):
        return tokens.new_empty(0, tower.output_dim, dtype=torch.float32)
    # One image at a time: for one query, BLAS picks its routine, and so its rounding, by the number of images.
    return torch.cat([net.attn_pool(image) for image in tokens.split(1)]).float()


def _look(tower: TimmTower, images: Tensor) -> _Seen:
    """Run timm's forward_features, and compute the row of attention."""
    net = tower.net
    tokens, ropes = _embed(tower, images)
    *before, last = net.blocks
    for block, rope in zip(before, ropes, strict=False):
        tokens = _block(block, tokens, rope)
    row = None if net.attn_pool is not None else _class_row(last.attn, last.norm1(tokens), ropes[-1])
    tokens = net.norm(_block(last, tokens, ropes[-1]))
    return _Seen(tokens, _pool_row(net.attn_pool, tokens) if row is None else row)


def _embed(tower: TimmTower, images: Tensor) -> tuple[Tensor, list[Tensor | None]]:
    """Embed patches with prefix tokens and positions -> [M, prefix + T, C], and each block's rotations.

    The convolution's stride is its kernel, so it is one matrix product; that keeps it out of cuDNN's TF32.
    """
    net = tower.net
    M, _, S, _ = images.shape
    P = tower.patch_size[0]
    side = S // P
    patches = images.reshape(M, 3, side, P, side, P).permute(0, 2, 4, 1, 3, 5).reshape(M, side * side, 3 * P * P)
    tokens = F.linear(patches, net.patch_embed.proj.weight.flatten(1), net.patch_embed.proj.bias)  # [M, T, C]
    tokens = net.patch_embed.norm(tokens)
    if net.dynamic_img_size:
        tokens = tokens.unflatten(1, (side, side))  # timm flattens it again
    depth = len(net.blocks)
    placed = net._pos_embed(tokens)
    if not isinstance(placed, tuple):  # a VisionTransformer, which knows no rotations
        return net.norm_pre(placed), [None] * depth
    tokens, rope = placed
    mixed = getattr(net, "rope_mixed", False) and rope is not None
    return net.norm_pre(tokens), [rope[i] for i in range(depth)] if mixed else [rope] * depth


def _block(block: nn.Module, tokens: Tensor, rope: Tensor | None) -> Tensor:
    return block(tokens) if rope is None else block(tokens, rope=rope)


def _class_row(attention: Any, normed: Tensor, rope: Tensor | None) -> Tensor:
    """Compute the class token's attention in this layer, mean over heads -> [M, L] float32; normed [M, L, C]."""
    M, L, _ = normed.shape
    heads = attention.num_heads
    if attention.qkv is None:
        query, key = attention.q_proj(normed), attention.k_proj(normed)
    else:
        bias = getattr(attention, "q_bias", None)
        joint = attention.qkv(normed)
        if bias is not None:
            joint = joint + torch.cat((attention.q_bias, attention.k_bias, attention.v_bias))
        query, key, _ = joint.chunk(3, dim=-1)
    query = attention.q_norm(query[:, :1].reshape(M, 1, heads, -1).transpose(1, 2))
    key = attention.k_norm(key.reshape(M, L, heads, -1).transpose(1, 2))  # [M, heads, L, C / heads]
    if rope is not None:  # of patches alone: the class token and registers have no place
        from timm.layers import apply_rot_embed_cat

        first = attention.num_prefix_tokens
        turned = apply_rot_embed_cat(key[:, :, first:], rope, half=getattr(attention, "rotate_half", False))
        key = torch.cat([key[:, :, :first].to(turned.dtype), turned], dim=2)
    return _softmax_row(query, key)


def _pool_row(pool: Any, tokens: Tensor) -> Tensor:
    """Compute the attention of a pool's query, mean over heads -> [M, L] float32; tokens [M, L, C]."""
    M, L, _ = tokens.shape
    query = pool.q(pool.latent).reshape(1, 1, pool.num_heads, pool.head_dim).transpose(1, 2)
    key, _ = pool.kv(tokens).reshape(M, L, 2, pool.num_heads, pool.head_dim).permute(2, 0, 3, 1, 4)
    return _softmax_row(pool.q_norm(query), pool.k_norm(key))


def _softmax_row(query: Tensor, key: Tensor) -> Tensor:
    """Compute softmax(query key^T / sqrt(d)) of one query [M, heads, 1, d], mean over heads -> [M, L] float32."""
    # Not a matrix product: for one row, BLAS picks its routine, and so its rounding, by the number of images.
    row = query.float() * query.shape[-1] ** -0.5
    return (row * key.float()).sum(dim=-1).softmax(dim=-1).mean(dim=1)
