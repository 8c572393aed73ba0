"""Recognition of the model that reference weights belong to, by their names and shapes."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn

from trainer.checkpoints.models import section_from_json
from trainer.checkpoints.reference.pth_file import first_few
from trainer.errors import CheckpointError
from trainer.models.build import STUDENTS
from trainer.models.config import ARCHITECTURES, MaskingConfig, ModelConfig
from trainer.models.heads.build import new_classifier, new_segmenter
from trainer.models.heads.config import CLASSIFIERS, SCANOBJECTNN, SEGMENTATIONS, ClassifierConfig, SegmentationConfig

__all__ = [
    "ENCODER",
    "KINDS",
    "Recognised",
    "build_empty",
    "complete_sections",
    "count_parts",
    "misfits",
    "recognise",
    "rows_of",
    "sections_of_kind",
]

ENCODER = "h_encoder."
VIEWS = 3
MARKS = {  # what only a model of this kind has
    "pretraining": ("mask_token", "h_decoder.", "decoder_pos_embeds.", "decoder_norm.", "token_prop.", "rec_head"),
    "classifier": ("cls_head_finetune.",),
    "segmentation": ("label_conv.", "propagations.", "convs4.", "bns3."),
}
KINDS = ("pretraining", "classifier", "segmentation")
UNTOLD = {  # what a run of the reference may choose and its weights do not show
    "hierarchical": {
        "model": ("groups", "neighbours", "heads", "drop_path"),
        "masking": ("mode", "ratio"),
        "classifier": ("neighbours", "radius", "dropout", "label_smoothing"),
        "segmentation": ("neighbours", "radius", "dropout"),
    },
    "plain": {
        "model": (
            "groups", "neighbours", "heads", "decoder_depth", "decoder_heads", "drop_path", "adapter_neighbours",
        ),
        "masking": ("mode", "ratio"),
        "classifier": ("dropout",),
        "segmentation": ("groups", "neighbours", "taps", "dropout"),
    },
}  # fmt: skip
NOT_USED = {  # settings of [model] in fine-tuning: its own section has them, or it has no decoder
    ("hierarchical", "classifier"): ("neighbours",),
    ("hierarchical", "segmentation"): ("neighbours",),
    ("plain", "classifier"): ("decoder_depth", "decoder_heads"),
    ("plain", "segmentation"): ("decoder_depth", "decoder_heads", "groups", "neighbours"),
}


@dataclass(frozen=True, kw_only=True)
class Recognised:
    """A state dict's kind and sizes.

    kind        "pretraining", "classifier" or "segmentation"
    entries     its tensors under our names
    renamed     our name -> its name, where they differ
    determined  section -> settings that the shapes determine
    assumed     section -> settings that they do not, at the reference's values
    target      members of a group at the level both losses are about, from the heads; None where there is none
    teacher     channels and views of the teacher's maps; zeros for a model without a 2D head
    architecture  of the student
    member      the method whose file it is; "" where the kind says it
    dropped     what a student has no use for -> the file's names of it
    may_be_new  how names of ours begin that the method has no counterpart of
    """

    kind: str
    entries: dict[str, Tensor]
    renamed: dict[str, str] = field(default_factory=dict)
    determined: dict[str, dict[str, Any]]
    assumed: dict[str, dict[str, Any]]
    target: int | None = None
    teacher: dict[str, int] = field(default_factory=dict)
    architecture: str = "hierarchical"
    member: str = ""
    dropped: dict[str, tuple[str, ...]] = field(default_factory=dict)
    may_be_new: tuple[str, ...] = ()


def sections_of_kind(architecture: str, kind: str) -> dict[str, type]:
    """The sections that a checkpoint of this kind has, name -> dataclass; none for a kind that is not known."""
    heads = {"classifier": CLASSIFIERS, "segmentation": SEGMENTATIONS}
    if kind not in KINDS:
        return {}
    own = {"masking": MaskingConfig} if kind == "pretraining" else {kind: heads[kind][architecture]}
    return {"model": ARCHITECTURES[architecture], **own}


def recognise(entries: Mapping[str, Tensor], source: str) -> Recognised:
    """Infer kind and sizes from a state dict without prefix and teacher.

    Sizes that a partial state dict does not show are the paper's, so that what is missing can then be named.

    Raises CheckpointError where the names are not the reference's, or of more than one kind, or of an encoder alone.
    """
    kinds = [kind for kind, marks in MARKS.items() if any(name.startswith(marks) for name in entries)]
    if not kinds or not any(name.startswith(ENCODER) for name in entries):
        raise CheckpointError(
            f"{source} is not a model of the reference: its {len(entries)} names are {first_few(entries)}.\n"
            f"  Expected names such as {ENCODER}token_embed.0.first_conv.0.weight, and a decoder or a head;\n"
            "  or those of Point-MAE and its relatives, such as MAE_encoder.encoder.first_conv.0.weight."
        )
    if len(kinds) > 1:
        raise CheckpointError(
            f"{source} mixes names of {len(kinds)} kinds of model, {' and '.join(kinds)}; expected one kind. Names of "
            "the "
            f"others: {first_few(name for kind in kinds[1:] for name in entries if name.startswith(MARKS[kind]))}"
        )
    read = {"pretraining": _pretraining, "classifier": _classifier, "segmentation": _segmentation}
    return read[kinds[0]](dict(entries), source)


def complete_sections(
    found: Recognised, stated: Mapping[str, Mapping[str, Any]], source: str
) -> tuple[dict[str, Any], list[str]]:
    """Complete all sections of the model from its shapes, the stated settings, and the reference's values for the rest.

    stated  section -> settings that the user knows.
    ->      section name -> its dataclass, and the names of the settings that are assumed: those by which one run of the
            reference may differ from another. How its code behaves (REFERENCE_QUIRKS) is known.

    Raises CheckpointError listing all that is impossible or contradicts the shapes.
    """
    known = sections_of_kind(found.architecture, found.kind)
    problems = [
        f"[{name}] does not apply to a {found.kind} model" for name in stated if name not in known and stated[name]
    ]
    sections: dict[str, Any] = {}
    assumed = []
    for name, cls in known.items():
        own = dict(stated.get(name, {}))
        for key, value in found.determined[name].items():
            if key in own and _plain(own[key]) != _plain(value):
                problems.append(f"{name}.{key} = {_plain(own[key])} was given, but the shapes imply {_plain(value)}")
        sections[name] = section_from_json(cls, {**found.assumed[name], **own, **found.determined[name]})
        not_used = NOT_USED.get((found.architecture, found.kind), ()) if name == "model" else ()
        if name == "model" and not getattr(sections[name], "adapters", ()):
            not_used = (*not_used, "adapter_neighbours")
        fixed = {*own, *found.determined[name], *not_used}
        assumed += [f"{name}.{key}" for key in UNTOLD[found.architecture][name] if key not in fixed]
    model = sections["model"]
    for name, section in sections.items():
        problems += [f"{name}.{text}" for text in section.problems()]
        if name in ("classifier", "segmentation"):
            problems += [f"{name}.{text}" for text in section.conflicts(model)]
    if found.target is not None and len(model.neighbours) > model.target_level >= 0:
        got = model.neighbours[model.target_level]
        if got != found.target:
            problems.append(f"model.neighbours[{model.target_level}] = {got}, but the heads predict {found.target}")
    if problems:
        listed = "\n  ".join(problems)
        raise CheckpointError(
            f"{source}: {len(problems)} settings of the model do not fit its weights\n  {listed}\n"
            "Give the settings that shapes cannot show (model.groups, model.neighbours, model.heads), and no others."
        )
    return sections, assumed


def build_empty(kind: str, sections: Mapping[str, Any], teacher: Mapping[str, int]) -> nn.Module:
    """Build the model of these settings on the meta device, for its names and shapes."""
    with torch.device("meta"):
        if kind == "classifier":
            return new_classifier(sections["model"], sections["classifier"])
        if kind == "segmentation":
            return new_segmenter(sections["model"], sections["segmentation"])
        channels, views = teacher.get("channels", 0), teacher.get("views", 0)
        student = STUDENTS[sections["model"].architecture]
        return student(sections["model"], sections["masking"], teacher_channels=channels, views=views)


def misfits(entries: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """List how a state dict differs from the expected one: missing and unexpected names, shapes, types."""
    missing = [name for name in expected if name not in entries]
    unexpected = [name for name in entries if name not in expected]
    both = [name for name in expected if name in entries]
    shapes = [
        f"{name} is {list(entries[name].shape)}, expected {list(expected[name].shape)}"
        for name in both
        if entries[name].shape != expected[name].shape
    ]
    types = [
        f"{name} is {_type(entries[name])}, expected {_type(expected[name])}"
        for name in both
        if entries[name].dtype != expected[name].dtype
    ]
    lines = (
        (missing, f"{len(missing)} of {len(expected)} names missing: "),
        (unexpected, f"{len(unexpected)} names unexpected: "),
        (shapes, f"{len(shapes)} of another shape: "),
        (types, f"{len(types)} of another type: "),
    )
    return [text + first_few(names) for names, text in lines if names]


def _pretraining(entries: dict[str, Tensor], source: str) -> Recognised:
    # Point-M2AE has one head, and no second one to tell it from; otherwise its names are taken to be the same.
    single = [name for name in entries if name in ("rec_head.weight", "rec_head.bias")]
    renamed = {name.replace("rec_head", "rec_head_3d"): name for name in single}
    taken = [ours for ours in renamed if ours in entries]
    if taken:
        raise CheckpointError(f"{source} has both {first_few(taken)} and {first_few(single)}; expected only one.")
    theirs = {old: new for new, old in renamed.items()}
    entries = {theirs.get(name, name): value for name, value in entries.items()}
    both = any(name.startswith("rec_head_2d.") for name in entries)
    model, assumed = _encoder(entries)
    stages = count_parts(entries, r"(?:h_decoder|decoder_pos_embeds)\.(\d+)\.")
    downwards = model["encoder_dims"][::-1]
    model["decoder_dims"] = tuple(
        rows_of(
            entries,
            [f"decoder_pos_embeds.{i}.{j}.bias" for j in (0, 2)] + [f"h_decoder.{i}.blocks.0.norm1.bias"],
            downwards,
            i,
        )
        for i in range(stages)
    )
    model["decoder_depths"] = tuple(count_parts(entries, rf"h_decoder\.{i}\.blocks\.(\d+)\.") for i in range(stages))
    model["decoder_up_blocks"] = tuple(
        count_parts(entries, rf"token_prop\.{i}\.extraction\.operation\.(\d+)\.", least=0) for i in range(stages - 1)
    )
    model["targets"] = "both" if both else "3d"
    known = "rec_head_3d.bias" in entries
    K = max(rows_of(entries, ["rec_head_3d.bias"], (24,), 0) // 3, 1)
    level = len(model["encoder_dims"]) - stages
    neighbours = assumed.get("neighbours", ())
    if known and 0 <= level < len(neighbours):
        assumed["neighbours"] = (*neighbours[:level], K, *neighbours[level + 1 :])
    channels = rows_of(entries, ["rec_head_2d.bias"], (3 * 8 * 512,), 0) // (K * VIEWS)
    return Recognised(
        kind="pretraining",
        entries=entries,
        renamed=renamed,
        determined={"model": model, "masking": {}},
        assumed={"model": assumed, "masking": {} if both else {"mode": "random"}},
        target=K if known else None,
        teacher={"channels": channels, "views": VIEWS} if both else {"channels": 0, "views": 0},
    )


def _classifier(entries: dict[str, Tensor], source: str) -> Recognised:
    model, assumed = _encoder(entries)
    linear = sorted(
        (int(match[1]), name)
        for name, value in entries.items()
        if (match := re.fullmatch(r"cls_head_finetune\.(\d+)\.weight", name)) and value.ndim == 2
    )
    widths = tuple(entries[name].shape[0] for _, name in linear) or (256, 256, 40)
    seen = entries[linear[0][1]].shape[1] if linear else model["encoder_dims"][-1]
    pooling = "concat" if seen == 2 * model["encoder_dims"][-1] else "sum"
    head = ClassifierConfig() if pooling == "sum" else SCANOBJECTNN
    determined = {"classes": widths[-1], "hidden": widths[:-1], "pooling": pooling}
    return _fine_tuning("classifier", entries, model, assumed, determined, {**asdict(head), "distance": "expanded"})


def _segmentation(entries: dict[str, Tensor], source: str) -> Recognised:
    model, assumed = _encoder(entries)
    label = entries.get("label_conv.0.weight")
    embedding, categories = label.shape[:2] if label is not None and label.ndim == 3 else (64, 16)
    determined = {
        "parts": rows_of(entries, ["convs4.bias"], (50,), 0),
        "categories": categories,
        "embedding": embedding,
        "propagation": tuple(
            rows_of(
                entries, [f"propagations.0.mlp_convs.{i}.bias", f"propagations.0.mlp_bns.{i}.bias"], (1536, 1024), i
            )
            for i in range(2)
        ),
        "hidden": tuple(
            rows_of(entries, [f"convs{i + 1}.bias", f"bns{i + 1}.bias"], (1024, 512, 256), i) for i in range(3)
        ),
    }
    head = {**asdict(SegmentationConfig()), "distance": "expanded"}
    return _fine_tuning("segmentation", entries, model, assumed, determined, head)


def _fine_tuning(
    kind: str,
    entries: dict[str, Tensor],
    model: dict[str, Any],
    assumed: dict[str, Any],
    determined: dict[str, Any],
    head: dict[str, Any],
) -> Recognised:
    # no decoder: the settings of the smallest one, which fit any encoder and mean nothing here
    assumed |= {"decoder_dims": (model["encoder_dims"][-1],), "decoder_depths": (1,), "decoder_up_blocks": ()}
    rest = {key: value for key, value in head.items() if key not in determined}
    return Recognised(
        kind=kind,
        entries=entries,
        determined={"model": model, kind: determined},
        assumed={"model": assumed, kind: rest},
    )


def _encoder(entries: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Infer the settings of [model] that an encoder's shapes determine, and the rest at the reference's values."""
    paper = ModelConfig.reference()
    levels = count_parts(entries, r"h_encoder\.(?:token_embed|encoder_pos_embeds|encoder_blocks)\.(\d+)\.")
    dims = tuple(
        rows_of(
            entries,
            [
                f"h_encoder.encoder_pos_embeds.{i}.0.bias",
                f"h_encoder.token_embed.{i}.second_conv.3.bias",
                f"h_encoder.encoder_blocks.{i}.blocks.0.norm1.bias",
            ],
            paper.encoder_dims,
            i,
        )
        for i in range(levels)
    )
    embed = "h_encoder.token_embed.0.first_conv"
    determined = {
        "encoder_dims": dims,
        "encoder_depths": tuple(
            count_parts(entries, rf"h_encoder\.encoder_blocks\.{i}\.blocks\.(\d+)\.") for i in range(levels)
        ),
        "embed_first": tuple(rows_of(entries, [f"{embed}.{j}.bias"], (128, 256), i) for i, j in enumerate((0, 3))),
        "mlp_ratio": _mlp_ratio(entries, dims[0]),
    }
    sizes = {"groups": paper.groups, "neighbours": paper.neighbours} if levels == paper.levels else {}
    quirks = {f.name: getattr(paper, f.name) for f in fields(paper) if f.name not in ("groups", "neighbours")}
    return determined, {**{key: value for key, value in quirks.items() if key not in determined}, **sizes}


def _mlp_ratio(entries: Mapping[str, Tensor], finest: int) -> float:
    """Return the ratio with the fewest decimals that gives the hidden width of every block, which is rounded down.

    The finest level's alone where none does: then some block is misshapen, which the error can name.
    """
    first = re.compile(r"(?:h_encoder\.encoder_blocks|h_decoder)\.\d+\.blocks\.\d+\.mlp\.fc1\.weight")
    shapes = {tuple(value.shape) for name, value in entries.items() if first.fullmatch(name) and value.ndim == 2}
    least = max((hidden / width for hidden, width in shapes if width), default=0.0)
    for scale in (1, 10, 100, 1000, 10_000, 100_000):
        ratio = math.ceil(least * scale) / scale
        if ratio > 0 and all(int(width * ratio) == hidden for hidden, width in shapes):
            return ratio
    return rows_of(entries, ["h_encoder.encoder_blocks.0.blocks.0.mlp.fc1.bias"], (4 * finest,), 0) / finest


def count_parts(entries: Iterable[str], pattern: str, *, least: int = 1) -> int:
    """Count the parts numbered in the names: one more than the largest number, bounded by the number of names."""
    compiled = re.compile(pattern)
    numbers = {int(match[1]) for name in entries if (match := compiled.match(name))}
    return max(min(max(numbers, default=-1) + 1, len(numbers) + 2), least)


def rows_of(entries: Mapping[str, Tensor], names: list[str], otherwise: tuple[int, ...], index: int) -> int:
    """Return the length that most vectors of these names have, so that an odd one is detected; at least 1."""
    lengths = Counter(int(entries[name].shape[0]) for name in names if name in entries and entries[name].ndim >= 1)
    if not lengths:
        return otherwise[min(index, len(otherwise) - 1)]
    return max(lengths.most_common(1)[0][0], 1)


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else value


def _type(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")
