"""Models of the plain-transformer family at the recorded sizes, with recorded or closed-formula weights."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from benchmarks.parity.models import Filled
from benchmarks.parity.recorded import Missing, Recorded
from benchmarks.parity.weights import checksum, closed_formula
from cli.experiment.sections import Experiment
from cli.experiment.toml import load_experiment
from trainer.checkpoints.reference.family import FAMILY, Layout, our_name
from trainer.models.config import PlainConfig
from trainer.models.heads.config import PlainClassifierConfig, PlainSegmentationConfig
from trainer.models.heads.plain import PlainClassifier, PlainSegmenter
from trainer.models.plain.encoder import PlainEncoder
from trainer.models.plain.student import PlainStudent

__all__ = [
    "MEMBERS",
    "Member",
    "classifier_of",
    "full_classifier",
    "full_segmenter",
    "full_student",
    "parts_of",
    "plain_of",
    "plain_settings",
    "relative_classifier",
    "relative_encoder",
    "sized",
    "small_classifier",
    "small_segmenter",
    "small_student",
]

AS_RECORDED: dict[str, Any] = {"dropout": 0.0}


@dataclass(frozen=True)
class Member:
    """A member of the family in the folder.

    name    in file names and tables;  sizes  its key in config.json's `config`;  layout  how its checkpoints are read
    floor   of its cosine schedule, which no recorded file states
    """

    name: str
    sizes: str
    layout: Layout
    floor: float = 1e-6


MEMBERS = {
    name: Member(name, sizes, FAMILY[layout], floor=1e-7 if name == "act" else 1e-6)
    for name, sizes, layout in (
        ("pointbert", "pbert", "Point-BERT"),
        ("act", "act", "ACT"),
        ("recon", "recon", "ReCon"),
        ("pcp", "pcp", "PCP-MAE"),
        ("femae", "femae", "Point-FEMAE"),
    )
}
"""The relatives of Point-MAE, by their names in the folder."""


def plain_settings(overrides: tuple[str, ...] = ()) -> Experiment:
    """The `point-mae` preset, with `section.key=value` overrides; drop path off, as everything was recorded."""
    experiment = load_experiment("point-mae", overrides)
    return replace(experiment, model=replace(plain_of(experiment), drop_path=0.0))


def plain_of(settings: Experiment) -> PlainConfig:
    """The section [model]; ValueError where it is another architecture's."""
    if not isinstance(settings.model, PlainConfig):
        raise ValueError(f"model.architecture = {settings.model.architecture!r}; the recorded models are plain")
    return settings.model


# -- Point-MAE, with recorded weights ----------------------------------------------------------------------------------


def small_student(recorded: Recorded, settings: Experiment, device: torch.device) -> PlainStudent:
    """The recorded pre-training model."""
    sizes = recorded.sizes("pre")
    entries = recorded.checkpoint("pointmae_pretrain_ckpt.pth").entries
    model = replace(
        _encoder(settings, sizes), decoder_depth=sizes["decoder_depth"], decoder_heads=sizes["decoder_num_heads"]
    )
    student = PlainStudent(model, replace(settings.masking, ratio=sizes["mask_ratio"]), teacher_channels=1)
    return _loaded(student, entries, "pointmae_pretrain_ckpt.pth", device)


def small_classifier(recorded: Recorded, settings: Experiment, device: torch.device) -> PlainClassifier:
    """The recorded classifier: the checkpoint's encoder, and the recorded new weights."""
    sizes = recorded.sizes("fine")
    old = recorded.checkpoint("pointmae_pretrain_ckpt.pth").entries
    new = recorded.checkpoint("pointmae_finetune_new_keys.pth").entries
    config = PlainClassifierConfig(
        **head_of(new), groups=sizes["num_group"], neighbours=sizes["group_size"], **AS_RECORDED
    )
    made = PlainClassifier(_encoder(settings, recorded.sizes("pre")), config)
    found = made.sought(old)
    entries = {name: old[theirs] for name, theirs in found.names.items() if theirs in old} | dict(new)
    entries |= {name: value for name, value in made.state_dict().items() if _count(name) and name not in entries}
    return _loaded(made, entries, "pointmae_finetune_new_keys.pth", device)


def small_segmenter(recorded: Recorded, settings: Experiment, device: torch.device) -> PlainSegmenter:
    """The recorded part segmentation model."""
    file = "pointmae_partseg_ckpt.pth"
    sizes, entries = recorded.sizes("seg"), recorded.checkpoint(file).entries
    depth = 1 + max(int(name.split(".")[2]) for name in entries if name.startswith("blocks.blocks."))
    config = PlainSegmentationConfig(
        **parts_of(entries), groups=sizes["num_group"], neighbours=sizes["group_size"], interpolation="expanded",
        **AS_RECORDED,
    )  # fmt: skip
    model = replace(_encoder(settings, {**sizes, "depth": depth}), decoder_heads=sizes["num_heads"])
    return _loaded(PlainSegmenter(model, config), entries, file, device)


# -- relatives, by the closed formula ----------------------------------------------------------------------------------


def classifier_of(
    member: Member | None, settings: Experiment, sizes: Mapping[str, Any], entries: Mapping[str, Tensor]
) -> PlainClassifier:
    """A classifier of these sizes and of the head that its entries show; member None: Point-MAE."""
    layout = FAMILY["Point-MAE"] if member is None else member.layout
    config = PlainClassifierConfig(**head_of(entries), pooling=layout.pooling, **AS_RECORDED)
    return PlainClassifier(_relative(layout, settings, sizes, entries), config)


def relative_classifier(
    member: Member, recorded: Recorded, settings: Experiment, device: torch.device
) -> PlainClassifier:
    """The small classifier: what its loader takes of the pre-training weights, and new ones."""
    facts, salt = recorded.table("family_layouts")[member.name], recorded.sizes("salt")
    prefix = facts["prefix"].removeprefix("module.")
    pre = _by_formula(facts["pretrain_state_dict"], salt)
    shapes = facts["finetune_state_dict"]
    entries = {name: pre[prefix + name] for name in facts["taken"]}
    entries |= _by_formula({name: shapes[name] for name in facts["new"]}, salt)
    entries |= {name: torch.zeros((), dtype=torch.int64) for name in shapes if _count(name) and name not in entries}
    sizes = {**recorded.sizes(member.sizes), **facts["finetune_config"]}
    model = classifier_of(member, settings, sizes, entries)
    return _loaded(model, _ours(entries), "family_layouts.json", device)


def relative_encoder(member: Member, recorded: Recorded, settings: Experiment, device: torch.device) -> Any:
    """The small encoder before fine-tuning, and the state dict it was taken from under the member's names."""
    facts, salt = recorded.table("family_layouts")[member.name], recorded.sizes("salt")
    entries = _by_formula(facts["pretrain_state_dict"], salt)
    prefix = facts["prefix"].removeprefix("module.")
    sizes = {**recorded.sizes(member.sizes), **facts["finetune_config"]}
    inner = {name.removeprefix(prefix): value for name, value in entries.items() if name.startswith(prefix)}
    config = _relative(member.layout, settings, sizes, inner)
    encoder = PlainEncoder(config)
    known = encoder.state_dict()
    mine = {name: value for name, value in _ours(inner).items() if name in known}
    return _loaded(encoder, mine, "family_layouts.json", device), entries


# -- full size, by the closed formula ----------------------------------------------------------------------------------


def full_student(recorded: Recorded, settings: Experiment, device: torch.device) -> Filled:
    """Point-MAE's pre-training model at the paper's size."""
    facts = recorded.table("params")["pointmae"]["pretrain"]
    entries = _by_formula(facts["state_dict"], recorded.sizes("salt"))
    sizes = facts["model"]["transformer_config"] | {key: facts["model"][key] for key in ("num_group", "group_size")}
    model = replace(
        _encoder(settings, sizes), decoder_depth=sizes["decoder_depth"], decoder_heads=sizes["decoder_num_heads"]
    )
    student = PlainStudent(model, replace(settings.masking, ratio=sizes["mask_ratio"]), teacher_channels=1)
    return Filled(_loaded(student, entries, "params.json", device).eval(), checksum(entries.values()))


def full_classifier(
    name: str, which: str, recorded: Recorded, settings: Experiment, device: torch.device
) -> tuple[Filled, int]:
    """A classifier at the paper's size, "mn" or "scan"; with the points it is fed."""
    kind = {"mn": "finetune_modelnet40", "scan": "finetune_scanobjectnn"}[which]
    facts = recorded.table("params")[name]
    sizes = facts[kind]["model"]
    # names and shapes are recorded for ModelNet40; ScanObjectNN's differ in the number of classes alone
    shapes = dict(facts["finetune_modelnet40"]["state_dict"])
    classes = sizes["cls_dim"]
    last = max((key for key in shapes if key.startswith("cls_head_finetune.")), key=lambda key: int(key.split(".")[1]))
    number = last.split(".")[1]
    for key in (f"cls_head_finetune.{number}.weight", f"cls_head_finetune.{number}.bias"):
        shapes[key] = [[classes, *shapes[key][0][1:]], shapes[key][1]]
    entries = _by_formula(shapes, recorded.sizes("salt"))
    made = classifier_of(MEMBERS.get(name), settings, sized(sizes), entries)
    filled = Filled(_loaded(made, _ours(entries), "params.json", device).eval(), checksum(entries.values()))
    return filled, recorded.table("config")[f"fullsize_{name}_{which}"]["points"]


def full_segmenter(recorded: Recorded, settings: Experiment, device: torch.device) -> Filled:
    """Point-MAE's part segmentation model at the paper's size."""
    shapes = recorded.table("params")["partseg_pointmae"]["state_dict"]
    entries = _by_formula(shapes, recorded.sizes("salt"))
    config = PlainSegmentationConfig(**parts_of(entries), interpolation="expanded", **AS_RECORDED)
    sizes = sized(recorded.table("params")["pointmae"]["finetune_modelnet40"]["model"])
    made = PlainSegmenter(_encoder(settings, sizes), config)
    return Filled(_loaded(made, entries, "params.json", device).eval(), checksum(entries.values()))


# -- what the above share ----------------------------------------------------------------------------------------------


def head_of(entries: Mapping[str, Tensor]) -> dict[str, Any]:
    """Settings of [classifier] that a head's shapes show."""
    linear = sorted(
        (int(name.split(".")[1]), value)
        for name, value in entries.items()
        if name.startswith("cls_head_finetune.") and value.ndim == 2
    )
    if not linear:
        raise Missing("cls_head_finetune.0.weight and so on")
    norms = any(name.startswith("cls_head_finetune.") and name.endswith("running_mean") for name in entries)
    widths = [value.shape[0] for _, value in linear]
    return {"classes": widths[-1], "hidden": tuple(widths[:-1]), "batch_norm": norms}


def parts_of(entries: Mapping[str, Tensor]) -> dict[str, Any]:
    """Settings of [segmentation] that a head's shapes show."""
    for name in ("label_conv.0.weight", "convs3.weight", "propagation_0.mlp_convs.1.weight"):
        if name not in entries:
            raise Missing(name)
    embedding, categories, _ = entries["label_conv.0.weight"].shape
    return {
        "parts": entries["convs3.weight"].shape[0],
        "categories": categories,
        "embedding": embedding,
        "propagation": tuple(entries[f"propagation_0.mlp_convs.{i}.weight"].shape[0] for i in (0, 1)),
        "hidden": (entries["convs1.weight"].shape[0], entries["convs2.weight"].shape[0]),
    }


def sized(sizes: Mapping[str, Any]) -> dict[str, Any]:
    """ACT calls a token's width embed_dim."""
    return {**sizes, "trans_dim": sizes["trans_dim"] if "trans_dim" in sizes else sizes["embed_dim"]}


def _encoder(settings: Experiment, sizes: Mapping[str, Any]) -> PlainConfig:
    return replace(
        plain_of(settings),
        groups=sizes["num_group"],
        neighbours=sizes["group_size"],
        width=sizes["trans_dim"],
        depth=sizes["depth"],
        heads=sizes["num_heads"],
        decoder_heads=sizes["num_heads"],
    )


def _relative(
    layout: Layout, settings: Experiment, sizes: Mapping[str, Any], entries: Mapping[str, Tensor]
) -> PlainConfig:
    """The encoder of a relative: sizes that config.json states, and those that its weights alone show."""
    found = replace(_encoder(settings, sizes), **layout.encoder)
    if "reduce_dim.weight" in entries:
        found = replace(found, embed_width=entries["reduce_dim.weight"].shape[1])
    if "gcn_k" in sizes:
        hidden = next(value for name, value in entries.items() if name.endswith("cls.conv1.0.weight")).shape[0]
        found = replace(
            found, adapters=tuple(sizes["ad_layers"]), adapter_neighbours=sizes["gcn_k"], adapter_width=hidden
        )
    return found


def _by_formula(shapes: Mapping[str, Any], salt: str) -> dict[str, Tensor]:
    """A tensor with two names has the value of the later one under both."""
    filled = {name: _filled(name, tuple(shape), salt) for name, (shape, _) in shapes.items()}
    return filled | {our_name(name): value for name, value in filled.items() if our_name(name) in filled}


@cache
def _filled(name: str, shape: tuple[int, ...], salt: str) -> Tensor:
    return torch.from_numpy(closed_formula(name, shape, salt))


def _ours(entries: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of two names of one tensor the later one's value counts."""
    return {our_name(name): value for name, value in entries.items()}


def _count(name: str) -> bool:
    return name.endswith("num_batches_tracked")


def _loaded(model: Any, entries: Mapping[str, Tensor], source: str, device: torch.device) -> Any:
    try:
        model.load_state_dict(entries, strict=True)
    except RuntimeError as error:  # torch's text names every missing, unexpected and reshaped entry
        raise ValueError(f"{source} does not fit a model of the sizes in config.json: {error}") from error
    return model.to(device)
