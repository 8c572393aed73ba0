"""The public files of Point-MAE and its relatives, recognised by their keys and read into plain models.

Source of the names: the official repositories' state dicts (Pang-Yatian/Point-MAE, lulutang0608/Point-BERT,
RunpeiDong/ACT, qizekun/ReCon, aHapBean/PCP-MAE, zyh16143998882/AAAI24-PointFEMAE).
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from trainer.checkpoints.reference.pth_file import first_few
from trainer.checkpoints.reference.recognise import Recognised, count_parts, rows_of
from trainer.errors import CheckpointError

__all__ = ["FAMILY", "Layout", "our_name", "recognise_family"]

STUDENT = "MAE_encoder."
WRAPPER = "module."
DECODER = ("mask_token", "decoder_pos_embed.", "MAE_decoder.", "increase_dim.")
INNER = ("encoder.", "reduce_dim.", "pos_embed.", "blocks.blocks.", "norm.", "cls_token", "cls_pos", "img_", "text_")
TWINS = (("conv1.1.", "bn1."), ("conv2.1.", "bn2."))
"""Of the two names of Point-FEMAE's batch norms, the one that we do not have, and ours."""
HEADS = {"classifier": ("cls_head_finetune.",), "segmentation": ("label_conv", "propagation_0", "convs", "bns")}
PAPER = {"groups": 64, "neighbours": 32, "heads": 6, "decoder_heads": 6, "decoder_depth": 4, "drop_path": 0.1}


@dataclass(frozen=True)
class Layout:
    """How a member's pre-training files differ from Point-MAE's.

    name      of the method
    marks     how names begin that only this member has (its encoder's without prefix where they start with a dot)
    prefix    of the encoder's names
    encoder   settings of [model] that its encoder is made by
    pooling   of its classifier, as in PlainClassifierConfig
    decoder   its names of decoder parts -> ours
    dropped   how names begin that a plain student has no use for -> what they are
    new       the parts of our decoder that it has no counterpart of
    masking   settings of [masking] that its paper has
    """

    name: str
    marks: tuple[str, ...]
    prefix: str = STUDENT
    encoder: Mapping[str, Any] = field(default_factory=dict)
    pooling: Literal["joined", "mean"] = "joined"
    decoder: Mapping[str, str] = field(default_factory=lambda: {part: part for part in DECODER})
    dropped: Mapping[str, str] = field(default_factory=dict)
    new: tuple[str, ...] = ()
    masking: Mapping[str, Any] = field(default_factory=lambda: {"mode": "random", "ratio": 0.6})


_OF_POINT_BERT = {"lm_head.": "the token classifier", "cls_head.": "the head of the class token"}

FAMILY: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        Layout("Point-MAE", ()),
        Layout(
            "Point-BERT",
            ("transformer_q.",),
            prefix="transformer_q.",
            encoder={"front": "class"},
            decoder={},
            dropped={
                "transformer_k.": "the momentum copy",
                "dvae.": "the tokeniser",
                "queue": "the queue of negatives",
                "transformer_q.mask_token": "the mask token of an encoder without a decoder",
                **{f"transformer_q.{name}": what for name, what in _OF_POINT_BERT.items()},
            },
            new=DECODER,
        ),
        Layout(
            "ACT",
            ("ACT_encoder.", "ACT_decoder."),
            prefix="ACT_encoder.",
            encoder={"front": "class"},
            decoder={
                "mask_token": "mask_token",
                "decoder_pos_embed.": "decoder_pos_embed.",
                "ACT_decoder.": "MAE_decoder.",
            },
            dropped={
                "dvae_tokenizer.": "the teacher",
                "proj_head.": "the head of the teacher's features",
                **{f"ACT_encoder.{name}": what for name, what in _OF_POINT_BERT.items()},
            },
            new=DECODER,
            masking={"mode": "random", "ratio": 0.8},
        ),
        Layout(
            "ReCon",
            ("img_proj.", "text_proj.", ".img_token", ".text_token", ".blocks.blocks.0.attn_contrast."),
            encoder={"front": "three", "streams": "two"},
            dropped={
                "img_encoder.": "the image teacher",
                "text_encoder.": "the text teacher",
                "img_proj.": "the head of the image's feature",
                "text_proj.": "the head of the text's feature",
                "cls_proj.": "the head of the class token",
            },
        ),
        Layout(
            "PCP-MAE",
            ("pred_pos_proj.", ".mask_pos_token"),
            encoder={"position": "sines"},
            dropped={
                "pred_pos_proj.": "the head of hidden centres",
                "MAE_encoder.mask_pos_token": "the token of hidden centres",
            },
            new=("decoder_pos_embed.",),
        ),
        Layout(
            "Point-FEMAE",
            ("mask_token_block", "mask_token_rand", "MAE_decoder_block.", "MAE_decoder_rand.", ".blocks.blocks.0.cls."),
            pooling="mean",
            # the adapters run on the block-masked copy alone, so its decoder is theirs
            decoder={f"{part.rstrip('.')}_block{'.' if part.endswith('.') else ''}": part for part in DECODER},
            dropped={
                f"{part.rstrip('.')}_rand{'.' if part.endswith('.') else ''}": "the decoder of the random masks"
                for part in DECODER
            },
            masking={"mode": "block", "ratio": 0.6},
        ),
    )
}
"""The members by name."""


def our_name(name: str) -> str:
    """Our name of an encoder's weight, of a member's without prefix."""
    for theirs, ours in TWINS:
        if f".cls.{theirs}" in name:
            return name.replace(f".cls.{theirs}", f".cls.{ours}")
    return name


def recognise_family(entries: Mapping[str, Tensor], source: str) -> Recognised | None:
    """Infer member, kind and sizes from a state dict without prefix; None for one of another family.

    Raises CheckpointError where the names are of more than one member or of none of its kinds, and listing names that
    the member does not have.
    """
    entries = _unwrapped(entries, source)
    prefixes = {layout.prefix for layout in FAMILY.values()}
    if any(name.startswith(tuple(prefixes)) for name in entries):
        return _pretraining(entries, source)
    if any(name.startswith(("blocks.blocks.", "encoder.first_conv.")) for name in entries):
        return _fine_tuned(entries, source)
    return None


def _unwrapped(entries: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Take `module.` out of the middle of names too, as the official loaders do."""
    plain = {name.replace(WRAPPER, ""): value for name, value in entries.items()}
    if len(plain) < len(entries):
        double = [name for name in entries if WRAPPER in name and name.replace(WRAPPER, "") in entries]
        raise CheckpointError(
            f"{source}: with and without `{WRAPPER}`, both are there: {first_few(double)}. Expected one."
        )
    return plain


# -- pre-training ------------------------------------------------------------------------------------------------------


def _pretraining(entries: Mapping[str, Tensor], source: str) -> Recognised:
    layout = _member(entries, source)
    found: dict[str, Tensor] = {}
    renamed: dict[str, str] = {}
    dropped: dict[str, list[str]] = {}
    unknown: list[str] = []
    for name, value in entries.items():
        reason = next((what for start, what in layout.dropped.items() if name.startswith(start)), None)
        mine = _encoder_name(name, layout) or _decoder_name(name, layout)
        if reason is not None:
            dropped.setdefault(reason, []).append(name)
        elif mine is None:
            unknown.append(name)
        else:
            _put(found, renamed, mine, name, value, source)
    if unknown:
        raise CheckpointError(
            f"{source} is {layout.name}'s by its other names, but {len(unknown)} are not: {first_few(unknown)}. "
            "Nothing was written; expected an official file, or one with the same names."
        )
    inner = {name.removeprefix(STUDENT): value for name, value in found.items() if name.startswith(STUDENT)}
    determined, assumed = _settings(inner, layout)
    depth = count_parts(found, r"MAE_decoder\.blocks\.(\d+)\.", least=0)
    if depth:
        determined["decoder_depth"] = depth
    if "increase_dim.0.bias" in found:
        determined["neighbours"] = max(rows_of(found, ["increase_dim.0.bias"], (96,), 0) // 3, 1)
    assumed = {**PAPER, **assumed, "targets": "3d"}
    return Recognised(
        kind="pretraining",
        architecture="plain",
        member=layout.name,
        entries=found,
        renamed=renamed,
        determined={"model": determined, "masking": {}},
        assumed={
            "model": {key: value for key, value in assumed.items() if key not in determined},
            "masking": dict(layout.masking),
        },
        teacher={"channels": 0, "views": 0},
        dropped={what: tuple(names) for what, names in dropped.items()},
        may_be_new=layout.new,
    )


def _member(entries: Collection[str], source: str) -> Layout:
    inner = tuple(layout.prefix for layout in FAMILY.values())

    def has(mark: str) -> bool:
        if mark.startswith("."):
            return any(name.startswith(inner) and mark in f".{name}" for name in entries)
        return any(name.startswith(mark) for name in entries)

    members = [layout for layout in FAMILY.values() if any(has(mark) for mark in layout.marks)]
    if len(members) > 1:
        names = [name for layout in members for name in entries if name.startswith(layout.marks)]
        raise CheckpointError(
            f"{source} has names of {' and '.join(layout.name for layout in members)} at once ({first_few(names)}); "
            "expected one of them."
        )
    return members[0] if members else FAMILY["Point-MAE"]


def _encoder_name(name: str, layout: Layout) -> str | None:
    inner = name.removeprefix(layout.prefix)
    return STUDENT + our_name(inner) if inner != name and inner.startswith(INNER) else None


def _decoder_name(name: str, layout: Layout) -> str | None:
    for theirs, ours in layout.decoder.items():
        if name == theirs or (theirs.endswith(".") and name.startswith(theirs)):
            return ours + name.removeprefix(theirs)
    return None


# -- fine-tuned --------------------------------------------------------------------------------------------------------


def _fine_tuned(entries: Mapping[str, Tensor], source: str) -> Recognised:
    kinds = [kind for kind, marks in HEADS.items() if any(name.startswith(marks) for name in entries)]
    if len(kinds) != 1:
        marks = [mark for kind in HEADS.values() for mark in kind]
        raise CheckpointError(
            f"{source} has {'the heads of a classifier and of a segmenter' if kinds else 'an encoder, but no head'}: "
            f"{first_few(entries)}, {len(entries)} names in all. Expected one head, with names such as "
            f"{', '.join(marks)}."
        )
    kind = kinds[0]
    found: dict[str, Tensor] = {}
    renamed: dict[str, str] = {}
    unknown = []
    for name, value in entries.items():
        # ACT's segmenter puts _cls behind the parts of its head
        mine = re.sub(r"^(label_conv|propagation_0|convs\d|bns\d)_cls\.", r"\1.", our_name(name))
        if mine.startswith((*INNER, *HEADS[kind])):
            _put(found, renamed, mine, name, value, source)
        else:
            unknown.append(name)
    if unknown:
        raise CheckpointError(
            f"{source} is a fine-tuned model of Point-MAE's family, but for {len(unknown)} names: "
            f"{first_few(unknown)}. Nothing was written; expected an official file, or one with the same "
            "names."
        )
    layout = _tuned_member(found, kind)
    member = layout.name
    if member == "Point-MAE":
        member = "ACT" if any("_cls." in name for name in renamed.values()) else "Point-MAE or ACT"
    determined, assumed = _settings(found, layout)
    head = _classifier(found, layout) if kind == "classifier" else _segmentation(found)
    assumed = {**PAPER, **assumed}
    rest = {"dropout": 0.5, "groups": 0} if kind == "classifier" else {"dropout": 0.5, "interpolation": "expanded"}
    return Recognised(
        kind=kind,
        architecture="plain",
        member=member,
        entries=found,
        renamed=renamed,
        determined={"model": determined, kind: head},
        assumed={
            "model": {key: value for key, value in assumed.items() if key not in determined},
            kind: {key: value for key, value in rest.items() if key not in head},
        },
    )


def _tuned_member(entries: Mapping[str, Tensor], kind: str) -> Layout:
    """The member by its encoder; Point-MAE stands for ACT too, whose encoder is the same after fine-tuning."""
    position = entries.get("pos_embed.0.weight")
    if any(".attn_contrast." in name for name in entries):
        return FAMILY["ReCon"]
    if any(".cls." in name for name in entries):
        return FAMILY["Point-FEMAE"]
    if position is not None and position.ndim == 2 and position.shape[1] != 3:
        return FAMILY["PCP-MAE"]
    norms = any(name.startswith("cls_head_finetune.") and name.endswith("running_mean") for name in entries)
    several = sum(1 for _ in _linear(entries)) > 1
    if "reduce_dim.weight" in entries or (kind == "classifier" and several and not norms):
        return FAMILY["Point-BERT"]
    return FAMILY["Point-MAE"]


def _classifier(entries: Mapping[str, Tensor], layout: Layout) -> dict[str, Any]:
    widths = [value.shape[0] for _, value in sorted(_linear(entries))] or [256, 256, 40]
    norms = any(name.startswith("cls_head_finetune.") and name.endswith("running_mean") for name in entries)
    return {
        "classes": widths[-1],
        "hidden": tuple(widths[:-1]),
        "batch_norm": norms or len(widths) == 1,
        "pooling": layout.pooling,
    }


def _linear(entries: Mapping[str, Tensor]) -> Iterator[tuple[int, Tensor]]:
    for name, value in entries.items():
        match = re.fullmatch(r"cls_head_finetune\.(\d+)\.weight", name)
        if match and value.ndim == 2:
            yield int(match[1]), value


def _segmentation(entries: Mapping[str, Tensor]) -> dict[str, Any]:
    label = entries.get("label_conv.0.weight")
    embedding, categories = label.shape[:2] if label is not None and label.ndim == 3 else (64, 16)
    convs, bns = "propagation_0.mlp_convs.{}.bias", "propagation_0.mlp_bns.{}.bias"
    return {
        "parts": rows_of(entries, ["convs3.bias"], (50,), 0),
        "categories": categories,
        "embedding": embedding,
        "propagation": tuple(rows_of(entries, [convs.format(i), bns.format(i)], (1536, 1024), i) for i in range(2)),
        "hidden": tuple(rows_of(entries, [f"convs{i + 1}.bias", f"bns{i + 1}.bias"], (512, 256), i) for i in range(2)),
    }


# -- both --------------------------------------------------------------------------------------------------------------


def _put(found: dict[str, Tensor], renamed: dict[str, str], mine: str, name: str, value: Tensor, source: str) -> None:
    """Put an entry under our name; of two names of one tensor the values must be equal."""
    if mine in found and not (found[mine].shape == value.shape and torch.equal(found[mine], value)):
        raise CheckpointError(
            f"{source}: {name} and {renamed.get(mine, mine)} are two names of one tensor, and their values differ. "
            "Fetch the file again."
        )
    found[mine] = value
    if mine != name:
        renamed[mine] = name


def _settings(inner: Mapping[str, Tensor], layout: Layout) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings of [model] that an encoder's shapes determine, and the rest at the family's values."""
    width = rows_of(inner, ["norm.bias", "pos_embed.2.bias", "blocks.blocks.0.norm1.bias"], (384,), 0)
    hidden = rows_of(inner, ["blocks.blocks.0.mlp.fc1.bias"], (4 * width,), 0)
    ratio = next(
        (r for r in (round(hidden / width, digits) for digits in range(6)) if r > 0 and int(width * r) == hidden),
        hidden / width,
    )
    reduced = inner.get("reduce_dim.weight")
    adapters = sorted({int(m[1]) for name in inner if (m := re.match(r"blocks\.blocks\.(\d+)\.cls\.", name))})
    first = "encoder.first_conv.{}.bias"
    determined = {
        "embed_first": tuple(rows_of(inner, [first.format(j)], (128, 256), i) for i, j in enumerate((0, 3))),
        "width": width,
        "depth": count_parts(inner, r"blocks\.blocks\.(\d+)\."),
        "mlp_ratio": float(ratio),
        "embed_width": int(reduced.shape[1]) if reduced is not None and reduced.ndim == 2 else 0,
        "front": layout.encoder.get("front", "none"),
        "streams": layout.encoder.get("streams", "one"),
        "position": layout.encoder.get("position", "coordinates"),
        "adapters": tuple(adapters),
    }
    if adapters:
        name = f"blocks.blocks.{adapters[0]}.cls."
        determined["adapter_width"] = rows_of(inner, [f"{name}bn1.bias", f"{name}bn1.weight"], (width,), 0)
    return determined, {"fps_skip_near_origin": True, "adapter_neighbours": 20}
