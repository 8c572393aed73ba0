"""Models of the recorded sizes with the recorded weights, in the reference's behaviour, without random drops."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.parity.recorded import Missing, Recorded
from benchmarks.parity.weights import checksum, closed_formula, fill_by_formula
from cli.experiment.sections import Experiment
from cli.experiment.toml import load_experiment
from pipeline.config import TeacherConfig
from pipeline.teacher.tower import Teacher, load_teacher
from trainer.checkpoints.reference.pth_file import TEACHER
from trainer.models.config import ModelConfig
from trainer.models.heads.classifier import Classifier
from trainer.models.heads.config import MODELNET40, PB_T50_RS, SCANOBJECTNN, SegmentationConfig
from trainer.models.heads.part_segmenter import PartSegmenter
from trainer.models.hierarchical.student import I2PMAE

__all__ = [
    "CLASSIFIERS",
    "FULL_CLASSIFIERS",
    "Filled",
    "full_classifier",
    "full_segmenter",
    "full_student",
    "full_teacher",
    "reference_settings",
    "small_classifier",
    "small_segmenter",
    "small_student",
    "small_teacher",
]

CLASSIFIERS = {"modelnet40": (MODELNET40, "radius_mn"), "scanobjectnn": (SCANOBJECTNN, "radius_scan")}
"""Names of the small classifiers -> the settings they are a small form of, and where config.json has their radii."""

FULL_CLASSIFIERS = {"mn": MODELNET40, "scan": PB_T50_RS}
"""The same of the full-size ones."""


class Filled(NamedTuple):
    """A model with the closed formula's weights, in evaluation mode, and the sum of their absolute values."""

    model: Any
    checksum: float


def reference_settings(overrides: tuple[str, ...] = ()) -> Experiment:
    """The `reference` preset, with `section.key=value` overrides; drop path off, as everything was recorded."""
    experiment = load_experiment("reference", overrides)
    return replace(experiment, model=replace(experiment.hierarchical, drop_path=0.0))


# -- small, with recorded weights --------------------------------------------------------------------------------------


def small_student(recorded: Recorded, settings: Experiment, device: torch.device) -> I2PMAE:
    """The recorded pre-training model."""
    sizes = recorded.sizes("pre")
    if any(sizes["local_radius"]):
        raise ValueError(
            f"config.json: pre: local_radius is {sizes['local_radius']}; the student knows no radius but 0"
        )
    entries = recorded.checkpoint("pretrain_ckpt.pth").entries
    stages = len(sizes["decoder_dims"])
    config = replace(
        settings.hierarchical,
        **_encoder_sizes(sizes, entries),
        neighbours=tuple(sizes["group_sizes"]),
        decoder_dims=tuple(sizes["decoder_dims"]),
        decoder_depths=tuple(sizes["decoder_depths"]),
        decoder_up_blocks=tuple(sizes["decoder_up_blocks"])[: stages - 1],
    )
    masking = replace(settings.masking, ratio=sizes["mask_ratio"])
    model = I2PMAE(config, masking, teacher_channels=recorded.sizes("clip", "embed_dim"))
    return _loaded(model, entries, "pretrain_ckpt.pth", device)


def small_teacher(recorded: Recorded, device: torch.device) -> Teacher:
    """The recorded CLIP, through the path that every weights file takes."""
    path = recorded.path("teacher_openai.pt")
    return load_teacher(TeacherConfig(architecture="openai", weights=str(path)), device)


def small_classifier(
    recorded: Recorded, settings: Experiment, name: str, device: torch.device, **changes: Any
) -> Classifier:
    """A recorded classifier, one of CLASSIFIERS. `changes` to its own settings, for tests."""
    base, radius = CLASSIFIERS[name]
    file = f"finetune_ckpt_{name}.pth"
    sizes, entries = recorded.sizes("fine"), recorded.checkpoint(file).entries
    layers = [value for key, value in entries.items() if key.startswith("cls_head_finetune.") and value.ndim == 2]
    if not layers:
        raise Missing(f"{file}: cls_head_finetune.0.weight and so on")
    config = replace(
        base,
        classes=layers[-1].shape[0],
        hidden=tuple(layer.shape[0] for layer in layers[:-1]),
        neighbours=tuple(sizes["group_sizes"]),
        radius=tuple(sizes[radius]),
        label_smoothing=sizes["smooth"] if base.label_smoothing else 0.0,
        **_AS_RECORDED,
    )
    model = Classifier(_head_model(settings, sizes, entries), replace(config, **changes))
    return _loaded(model, entries, file, device)


def small_segmenter(recorded: Recorded, settings: Experiment, device: torch.device) -> PartSegmenter:
    """The recorded part segmentation model."""
    file = "partseg_ckpt.pth"
    sizes, entries = recorded.sizes("seg"), recorded.checkpoint(file).entries
    for name in ("label_conv.0.weight", "convs4.weight"):
        if name not in entries:
            raise Missing(f"{file}: {name}")
    embedding, categories, _ = entries["label_conv.0.weight"].shape
    config = SegmentationConfig(
        parts=entries["convs4.weight"].shape[0],
        categories=categories,
        embedding=embedding,
        neighbours=tuple(sizes["group_sizes"]),
        radius=tuple(sizes["local_radius"]),
        propagation=tuple(sizes["mlp"]),
        hidden=tuple(sizes["head"]),
        **_AS_RECORDED,
    )
    return _loaded(PartSegmenter(_head_model(settings, sizes, entries), config), entries, file, device)


# -- full size, by the closed formula ----------------------------------------------------------------------------------


def full_student(recorded: Recorded, settings: Experiment, device: torch.device) -> Filled:
    """The paper's pre-training model, for the teacher that params.json describes."""
    channels = recorded.table("params")["pretrain"]["teacher_state_dict"][f"{TEACHER}visual.proj"][0][1]
    with torch.device("meta"):
        model = I2PMAE(settings.hierarchical, settings.masking, teacher_channels=channels)
    return _filled(model, recorded, device)


def full_classifier(recorded: Recorded, settings: Experiment, name: str, device: torch.device) -> Filled:
    """One of FULL_CLASSIFIERS."""
    with torch.device("meta"):
        model = Classifier(settings.hierarchical, replace(FULL_CLASSIFIERS[name], **_AS_RECORDED))
    return _filled(model, recorded, device)


def full_segmenter(recorded: Recorded, settings: Experiment, device: torch.device) -> Filled:
    """The ShapeNetPart model."""
    with torch.device("meta"):
        model = PartSegmenter(settings.hierarchical, SegmentationConfig(**_AS_RECORDED))
    return _filled(model, recorded, device)


def full_teacher(recorded: Recorded, device: torch.device) -> Filled:
    """A tower of the shapes in params.json, its values rounded to float16, through the path of every weights file."""
    from safetensors.torch import save_file

    names = recorded.table("params")["pretrain"]["teacher_state_dict"]
    salt = recorded.sizes("salt")
    visual = {
        name.removeprefix(TEACHER): torch.from_numpy(closed_formula(name, tuple(shape), salt)).half()
        for name, (shape, _) in names.items()
        if name.startswith(f"{TEACHER}visual.")
    }
    with TemporaryDirectory(prefix="i2p-parity-") as folder:
        path = Path(folder) / "teacher.safetensors"
        save_file(visual, path)
        teacher = load_teacher(TeacherConfig(architecture="openai", weights=str(path)), device)
    return Filled(teacher, checksum(value.float() for value in visual.values()))


# -- what the above share ----------------------------------------------------------------------------------------------

_AS_RECORDED: dict[str, Any] = {"distance": "expanded", "dropout": 0.0}


def _encoder_sizes(sizes: Mapping[str, Any], entries: Mapping[str, Tensor]) -> dict[str, Any]:
    first = [entries.get(f"h_encoder.token_embed.0.first_conv.{layer}.weight") for layer in (0, 3)]
    if any(weight is None for weight in first):
        raise Missing("the checkpoint's weights of h_encoder.token_embed.0.first_conv")
    return {
        "groups": tuple(sizes["num_groups"]),
        "embed_first": tuple(weight.shape[0] for weight in first if weight is not None),
        "encoder_dims": tuple(sizes["encoder_dims"]),
        "encoder_depths": tuple(sizes["encoder_depths"]),
        "heads": sizes["num_heads"],
    }


def _head_model(settings: Experiment, sizes: Mapping[str, Any], entries: Mapping[str, Tensor]) -> ModelConfig:
    """The encoder's sizes, and a decoder of one stage, which fits any encoder and is not used."""
    decoder: dict[str, Any] = {
        "decoder_dims": (sizes["encoder_dims"][-1],),
        "decoder_depths": (1,),
        "decoder_up_blocks": (),
    }
    neighbours = tuple(sizes["group_sizes"])
    return replace(settings.hierarchical, **_encoder_sizes(sizes, entries), **decoder, neighbours=neighbours)


def _loaded(model: Any, entries: Mapping[str, Tensor], source: str, device: torch.device) -> Any:
    try:
        model.load_state_dict(entries, strict=True)
    except RuntimeError as error:  # torch's text names every missing, unexpected and reshaped entry
        raise ValueError(f"{source} does not fit a model of the sizes in config.json: {error}") from error
    return model.to(device)


def _filled(model: nn.Module, recorded: Recorded, device: torch.device) -> Filled:
    total = fill_by_formula(model, recorded.sizes("salt"))
    return Filled(model.to(device).eval(), total)
