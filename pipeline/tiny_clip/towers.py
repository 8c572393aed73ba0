"""The towers of a tiny CLIP as they are trained: open_clip's, leaving out patches where there is nothing to see."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.tiny_clip.config import LearningConfig

__all__ = ["PatchSelection", "new_towers"]


class PatchSelection(nn.Module):
    """Drops patches while training, as open_clip's PatchDropout does, but those that no point touched first.

    Half of a depth view is background. Which patches go is random among the touched, and among the empty ones.
    Source: FLIP (Li et al., CVPR 2023) for dropping patches at random.

    share    of the patches that is dropped; 0 keeps all
    touched  [M, T] bool of the images that are encoded next; set before each forward pass while training
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share
        self.touched: Tensor | None = None

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens [M, T + 1, D], the class token first -> [M, kept + 1, D]."""
        M, L, D = tokens.shape
        kept = max(1, round((L - 1) * (1 - self.share)))
        if not self.training or self.touched is None or kept == L - 1:
            return tokens
        rank = torch.rand(M, L - 1) + self.touched.cpu()
        chosen = rank.topk(kept, dim=1).indices.to(tokens.device)
        patches = tokens[:, 1:].gather(1, chosen[:, :, None].expand(-1, -1, D))
        return torch.cat([tokens[:, :1], patches], dim=1)

    def look(self, pixels: Tensor, patch_side: int) -> None:
        """Note which patches of depth images [M, S, S] are not all one value."""
        M, S, _ = pixels.shape
        side = S // patch_side
        patches = pixels.view(M, side, patch_side, side, patch_side).permute(0, 1, 3, 2, 4).flatten(3)
        self.touched = (patches.amax(dim=3) != patches.amin(dim=3)).flatten(1)


def new_towers(architecture: Mapping[str, Any], learning: LearningConfig) -> Any:
    """An open_clip CLIP with the first weights of `learning.seed`; its vision tower drops patches by PatchSelection."""
    from open_clip.model import CLIP

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(learning.seed)
        model: Any = CLIP(architecture["embed_dim"], architecture["vision_cfg"], architecture["text_cfg"])
    model.visual.patch_dropout = PatchSelection(learning.patch_dropout)
    return model
