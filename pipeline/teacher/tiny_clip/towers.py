"""The towers of a tiny CLIP in training: open_clip's, without patches where there is nothing to see."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.teacher.tiny_clip.config import LearningConfig

__all__ = ["PatchSelection", "Standardise", "new_towers", "plain_state"]

_MOMENTUM = 0.05
_LEAST = 1e-6
_CELLS = 4  # cells along a patch's side in the first patch embedding


class PatchSelection(nn.Module):
    """Patch dropout for training, like open_clip's PatchDropout, that drops patches without points first.

    Half of a depth view is background. Which patches go is random among the touched, and among the empty ones.
    Source: FLIP (Li et al., CVPR 2023) for dropping patches at random.

    share    of the patches that is dropped; 0 keeps all
    touched  [M, T] bool of the images that are encoded next; set before each forward pass while training
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share
        self.touched: Tensor | None = None
        self.chosen: Tensor | None = None  # [M, kept] of the last forward pass; None: all

    def forward(self, tokens: Tensor) -> Tensor:
        """Select patches: tokens [M, T + 1, D], the class token first -> [M, kept + 1, D]."""
        M, L, D = tokens.shape
        kept = max(1, round((L - 1) * (1 - self.share)))
        if not self.training or self.touched is None or kept == L - 1:
            self.chosen = None
            return tokens
        rank = torch.rand(M, L - 1) + self.touched.cpu()
        chosen = rank.topk(kept, dim=1).indices.to(tokens.device)
        self.chosen = chosen
        patches = tokens[:, 1:].gather(1, chosen[:, :, None].expand(-1, -1, D))
        return torch.cat([tokens[:, :1], patches], dim=1)

    def look(self, pixels: Tensor, patch_side: int) -> None:
        """Record which patches of depth images [M, S, S] are not all one value."""
        M, S, _ = pixels.shape
        side = S // patch_side
        patches = pixels.view(M, side, patch_side, side, patch_side).permute(0, 1, 3, 2, 4).flatten(3)
        self.touched = (patches.amax(dim=3) != patches.amin(dim=3)).flatten(1)


class Standardise(nn.Module):
    """A tower's last LayerNorm, followed while training by a batch norm without weights of its own.

    At first all images give nearly the same feature, since the class token attends almost uniformly. Its common part
    drowns the gradient of the differences (measured: chance after 120 steps without, 10 % of 36 classes with it).
    A mean and a deviation per channel can be folded into the LayerNorm's own weights, so the finished tower is a plain
    one.

    norm  the LayerNorm;  at  [M] int64, the token of each row that is pooled, whose statistics count; None: token 0
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.norm = norm
        self.at: Tensor | None = None
        self.register_buffer("mean", torch.zeros_like(norm.bias.data))
        self.register_buffer("variance", torch.ones_like(norm.bias.data))

    def forward(self, tokens: Tensor) -> Tensor:
        """Normalise tokens [M, L, D] -> the same shape, float32."""
        normed = self.norm(tokens).float()
        mean, variance = self.mean, self.variance
        if self.training:
            pooled = normed[:, 0] if self.at is None else normed[torch.arange(len(normed)), self.at]
            mean, variance = pooled.mean(dim=0), pooled.var(dim=0)
            with torch.no_grad():
                self.mean.lerp_(mean, _MOMENTUM)
                self.variance.lerp_(variance, _MOMENTUM)
        return (normed - mean) / (variance + _LEAST).sqrt()

    def folded(self) -> tuple[Tensor, Tensor]:
        """Return weight and bias of a plain LayerNorm equivalent to this in evaluation mode."""
        spread = (self.variance + _LEAST).sqrt()
        return self.norm.weight.data / spread, (self.norm.bias.data - self.mean) / spread


def plain_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights under open_clip's own names, with every Standardise folded away."""
    state = dict(model.state_dict())
    for name, module in model.named_modules():
        if isinstance(module, Standardise):
            for key in ("norm.weight", "norm.bias", "mean", "variance"):
                del state[f"{name}.{key}"]
            state[f"{name}.weight"], state[f"{name}.bias"] = module.folded()
    return state


def new_towers(architecture: Mapping[str, Any], learning: LearningConfig) -> Any:
    """Create an open_clip CLIP with the first weights of `learning.seed`, with the above classes for training."""
    from open_clip.model import CLIP

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(learning.seed)
        model: Any = CLIP(architecture["embed_dim"], architecture["vision_cfg"], architecture["text_cfg"])
    # Points fall on pixels at random, so single pixels are noise: patch embeddings begin with what neighbours share.
    kernel = model.visual.conv1.weight.data
    cells = max(1, kernel.shape[-1] // _CELLS)
    coarse = nn.functional.avg_pool2d(kernel, cells) * cells
    model.visual.conv1.weight.data = nn.functional.interpolate(coarse, size=kernel.shape[-1], mode="nearest")
    model.visual.ln_post, model.ln_final = Standardise(model.visual.ln_post), Standardise(model.ln_final)
    model.visual.output_tokens = True  # of patches too, after ln_post and before the projection
    model.visual.patch_dropout = PatchSelection(learning.patch_dropout)
    return model
