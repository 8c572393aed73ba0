"""Zero-shot classification of shapes by the prompts nearest to the views' features."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.teacher.tiny_clip.captions import CLASS_PROMPTS, Vocabulary

__all__ = ["class_directions", "classify", "readable"]


def readable(name: str) -> str:
    """Convert a label to words: night_stand and NightStand become "night stand"."""
    spaced = "".join(f" {letter}" if letter.isupper() else letter for letter in name)
    return " ".join(spaced.replace("_", " ").replace("-", " ").lower().split())


@torch.no_grad()
def class_directions(clip: Any, vocabulary: Vocabulary, names: Sequence[str]) -> tuple[Tensor, list[int]]:
    """Compute the direction of each class in the embedding.

    clip    an open_clip CLIP, frozen, on the CPU.
    ->      directions [K, C] float32, of length 1: the mean over CLASS_PROMPTS; and the K indices of the names whose
            words are all in the vocabulary. The others cannot be scored.
    """
    known = [index for index, name in enumerate(names) if vocabulary.knows(readable(name))]
    if not known:
        return torch.empty(0, 0), known
    rows = []
    for index in known:
        tokens = vocabulary([prompt.format(readable(names[index])) for prompt in CLASS_PROMPTS])
        rows.append(torch.nn.functional.normalize(clip.encode_text(tokens).float(), dim=-1).mean(dim=0))
    return torch.nn.functional.normalize(torch.stack(rows), dim=-1), known


def classify(class_features: Tensor, directions: Tensor) -> np.ndarray:
    """Return the nearest class of each shape.

    class_features  [n, V, C] float32, the views' class features as `Teacher.encode_class` gives them.
    directions      [K, C] float32.
    ->              [n] int64 in 0..K-1: the largest cosine, mean over views.
    """
    towards = torch.nn.functional.normalize(class_features, dim=-1).mean(dim=1) @ directions.T
    answer: np.ndarray = towards.argmax(dim=1).numpy()
    return answer
