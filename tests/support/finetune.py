"""Fine-tuning models to test with: the recorded ones with their weights, and tiny ones."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tests.support.models import TINY
from tests.support.reference import reference_json, shared_dir
from trainer.classifier import Classifier
from trainer.head_config import ClassifierConfig, SegmentationConfig
from trainer.model_config import ModelConfig
from trainer.segmentation import PartSegmenter

CLASSIFIERS = ("modelnet40", "scanobjectnn")
TINY_HEAD: dict[str, Any] = {"neighbours": (8, 4, 4), "radius": (0.5, 0.8, 1.2)}


def tiny_classifier(seed: int = 0, model: dict[str, Any] | None = None, **settings: Any) -> Classifier:
    """A small classifier of 5 classes, weights drawn from `seed`."""
    config = ClassifierConfig(**{"classes": 5, "hidden": (16, 12), **TINY_HEAD, **settings})
    classifier = Classifier(tiny_sizes(**(model or {})), config)
    classifier.initialise(torch.Generator().manual_seed(seed))
    return classifier


def tiny_segmenter(seed: int = 0, model: dict[str, Any] | None = None, **settings: Any) -> PartSegmenter:
    """A small segmenter of 6 parts and 3 categories, weights drawn from `seed`."""
    sizes = {"parts": 6, "categories": 3, "embedding": 4, "propagation": (16, 12), "hidden": (16, 12, 8)}
    segmenter = PartSegmenter(tiny_sizes(**(model or {})), SegmentationConfig(**{**sizes, **TINY_HEAD, **settings}))
    segmenter.initialise(torch.Generator().manual_seed(seed))
    return segmenter


def tiny_sizes(**settings: Any) -> ModelConfig:
    """The tiny student's sizes, with other settings where given."""
    return ModelConfig(**{**{name: getattr(TINY, name) for name in TINY.__dataclass_fields__}, **settings})


def tiny_clouds(seed: int = 0, batch: int = 4, points: int = 96) -> Tensor:
    """[B, N, 3] random clouds in the unit ball."""
    cloud = torch.randn(batch, points, 3, generator=torch.Generator().manual_seed(seed))
    return cloud / cloud.norm(dim=2).amax(1)[:, None, None]


def recorded_classifier(name: str, **settings: Any) -> Classifier:
    """The recorded small classifier `name` with its weights; drop path and dropout off, as they were.

    settings  of [classifier], instead of the recorded ones.
    """
    sizes = reference_json("config")["config"]["fine"]
    entries = recorded_entries(f"finetune_ckpt_{name}", "base_model")
    recorded = {
        "classes": entries["cls_head_finetune.8.bias"].numel(),
        "neighbours": tuple(sizes["group_sizes"]),
        "radius": tuple(sizes["radius_mn" if name == "modelnet40" else "radius_scan"]),
        "distance": "expanded",
        "pooling": "sum" if name == "modelnet40" else "concat",
        "dropout": 0.0,
        "label_smoothing": sizes["smooth"] if name == "modelnet40" else 0.0,
    }
    model = Classifier(recorded_sizes(sizes), ClassifierConfig(**{**recorded, **settings}))
    model.load_state_dict(entries, strict=True)
    return model


def recorded_segmenter(**model_settings: Any) -> PartSegmenter:
    """The recorded small segmenter with its weights; drop path and dropout off, as they were.

    model_settings  of [model], instead of the reference's.
    """
    sizes = reference_json("config")["config"]["seg"]
    config = SegmentationConfig(
        neighbours=tuple(sizes["group_sizes"]),
        radius=tuple(sizes["local_radius"]),
        distance="expanded",
        propagation=tuple(sizes["mlp"]),
        hidden=tuple(sizes["head"]),
        dropout=0.0,
    )
    model = PartSegmenter(recorded_sizes(sizes, **model_settings), config)
    model.load_state_dict(recorded_entries("partseg_ckpt", "model_state_dict"), strict=True)
    return model


def recorded_sizes(sizes: dict[str, Any], **settings: Any) -> ModelConfig:
    """The encoder of one of config.json's entries, in the reference's behaviour, and the smallest of decoders."""
    return ModelConfig.reference(
        groups=tuple(sizes["num_groups"]),
        neighbours=tuple(sizes["group_sizes"]),
        encoder_dims=tuple(sizes["encoder_dims"]),
        encoder_depths=tuple(sizes["encoder_depths"]),
        heads=sizes["num_heads"],
        **{"drop_path": 0.0, **no_decoder(sizes["encoder_dims"]), **settings},
    )


def no_decoder(encoder_dims: Sequence[int]) -> dict[str, Any]:
    """The decoder's part of [model], for a model that has none: one stage, which fits any encoder."""
    return {"decoder_dims": (encoder_dims[-1],), "decoder_depths": (1,), "decoder_up_blocks": ()}


def recorded_entries(file: str, entry: str) -> dict[str, Tensor]:
    """A recorded checkpoint's state dict, without the prefix of the data-parallel wrapper."""
    path = shared_dir("reference") / f"{file}.pth"
    entries = torch.load(path, map_location="cpu", weights_only=True)[entry]
    return {name.removeprefix("module."): value for name, value in entries.items()}
