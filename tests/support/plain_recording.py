"""A folder laid out like the plain family's, at other sizes. Its arrays are our own: no size is to be assumed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.parity.compare import Row
from benchmarks.parity.plain_models import MEMBERS, parts_of
from benchmarks.parity.recorded import Missing
from benchmarks.parity.runner import PLAIN_SECTIONS
from benchmarks.parity.section import Section
from benchmarks.parity.sections.plain.finetune import PointMAEFinetune
from benchmarks.parity.sections.plain.partseg import PointMAEPartseg
from benchmarks.parity.sections.plain.pretrain import PointMAEPretrain
from benchmarks.parity.sections.plain.relatives import Relative
from benchmarks.parity.weights import checksum, closed_formula
from cli.experiment.sections import Experiment
from tests.support.parity import write_arrays
from tests.support.recording import Recorder, Recording
from trainer.checkpoints.reference.family import DECODER
from trainer.engine.optimiser import build_optimizer
from trainer.losses.terms import weighted_sum
from trainer.models.config import MaskingConfig, PlainConfig
from trainer.models.heads.classifier import classification_loss
from trainer.models.heads.config import PlainClassifierConfig, PlainSegmentationConfig
from trainer.models.heads.part_segmenter import segmentation_loss
from trainer.models.heads.plain import PlainClassifier, PlainSegmenter
from trainer.models.plain.student import PlainStudent

RECORDED = ("pointmae-pretrain", "pointmae-finetune", "pointmae-partseg", *MEMBERS)
SALT = "otherB"


def _of(width: int, heads: int, depth: int, groups: int, neighbours: int, **own: Any) -> dict[str, Any]:
    return {
        "trans_dim": width, "num_heads": heads, "depth": depth, "num_group": groups, "group_size": neighbours, **own,
    }  # fmt: skip


SIZES: dict[str, Any] = {
    "salt": SALT,
    "pre": _of(35, 7, 2, 21, 9, mask_ratio=0.7, decoder_depth=3, decoder_num_heads=5),
    "fine": {"num_group": 17, "group_size": 6, "cls_dim": 4},
    "seg": _of(22, 2, 12, 13, 8, prop=[14, 10], head=[12, 9]),
    "pbert": _of(28, 4, 2, 15, 7, encoder_dims=19, head=11, num_tokens=13, cls_dim=5, mask_ratio=[0.2, 0.5]),
    "act": _of(27, 3, 3, 14, 6, encoder_dims=18, head=10, num_tokens=12, cls_dim=6, mask_ratio=0.75),
    "recon": _of(26, 2, 2, 16, 5, decoder_depth=1, decoder_num_heads=13, cls_dim=3, mask_ratio=0.55),
    "pcp": _of(30, 5, 2, 12, 8, decoder_depth=2, decoder_num_heads=3, cls_dim=4, mask_ratio=0.5),
    "femae": _of(32, 4, 3, 18, 7, decoder_depth=1, decoder_num_heads=8, cls_dim=5, mask_ratio=0.4, gcn_k=4, downrate=5),
}
"""No two sizes agree that agree in the recorded folder."""
BATCH, POINTS = 5, 90


def record_plain(folder: Path, settings: Experiment) -> None:
    """Write everything that the RECORDED sections read, with what we compute from it."""
    folder.mkdir()
    torch.manual_seed(5)
    examples = {"numpy_seed": 7, "python_seed": 9, "masked": int(0.7 * 21)}
    layouts = {name: _layout(name) for name in MEMBERS}
    _write(folder, "family_layouts", layouts)
    _write_checkpoints(folder)
    config: dict[str, Any] = {"config": SIZES, "mask_examples": examples}
    _write(folder, "config", config)
    recorder = Recorder(folder, _inputs())
    transfer = PLAIN_SECTIONS["pointmae-finetune"](recorder, settings, torch.device("cpu"))
    assert isinstance(transfer, PointMAEFinetune)
    config["pointmae_finetune_transfer"] = _transfer(transfer)
    _write(folder, "config", config)
    recorder = Recorder(folder, _inputs())
    for name in RECORDED:
        section = PLAIN_SECTIONS[name](recorder, settings, torch.device("cpu"))
        _train(section)
        for work in [*section.parts().values()] * (2 if name == "femae" else 1):  # block masks are made on the way
            try:
                rows: list[Row] = list(work())
            except Missing as absent:
                raise AssertionError(absent.what) from absent
            assert rows or name in ("pointbert", "act")
    for stem, recording in recorder.recordings.items():
        write_arrays(folder / f"{stem}.npz", recording.values)


def _write(folder: Path, stem: str, values: Any) -> None:
    (folder / f"{stem}.json").write_text(json.dumps(values))


def _model(sizes: dict[str, Any], **own: Any) -> PlainConfig:
    return PlainConfig(
        groups=sizes["num_group"], neighbours=sizes["group_size"], width=sizes["trans_dim"], depth=sizes["depth"],
        heads=sizes["num_heads"], decoder_heads=sizes.get("decoder_num_heads", sizes["num_heads"]),
        decoder_depth=sizes.get("decoder_depth", 1), targets="3d", **own,
    )  # fmt: skip


def _layout(name: str) -> dict[str, Any]:
    """What family_layouts.json has of a member: its names and shapes, made of ours."""
    member = MEMBERS[name]
    sizes, layout = SIZES[member.sizes], member.layout
    own: dict[str, Any] = dict(layout.encoder)
    facts: dict[str, Any] = {}
    if "encoder_dims" in sizes:
        own["embed_width"] = sizes["encoder_dims"]
    if "gcn_k" in sizes:
        hidden = sizes["trans_dim"] // sizes["downrate"]
        own |= {"adapters": (0, 2), "adapter_neighbours": sizes["gcn_k"], "adapter_width": hidden}
        facts = {"gcn_k": sizes["gcn_k"], "downrate": sizes["downrate"], "ad_layers": [0, 2]}
    config = _model(sizes, **own)
    student = PlainStudent(config, MaskingConfig(), teacher_channels=1)
    bert = name == "pointbert"
    head = PlainClassifierConfig(
        classes=sizes["cls_dim"], hidden=(9,) if bert else (9, 8), batch_norm=not bert, pooling=layout.pooling
    )
    tuned = PlainClassifier(config, head)
    state = _with_twins({key: [list(v.shape), str(v.dtype).split(".")[1]] for key, v in tuned.state_dict().items()})
    theirs = {ours: names for names, ours in layout.decoder.items()}
    pretrained: dict[str, Any] = {}
    for key, value in student.state_dict().items():
        shape = [list(value.shape), str(value.dtype).split(".")[1]]
        if key.startswith("MAE_encoder."):
            pretrained[key.replace("MAE_encoder.", layout.prefix, 1)] = shape
        elif name not in ("pointbert", "act"):  # the recorded layouts have the encoders of these two alone
            part = next(part for part in DECODER if key.startswith(part))
            if part in theirs and part not in layout.new:
                pretrained[theirs[part] + key.removeprefix(part)] = shape
                if name == "femae":
                    pretrained[theirs[part].replace("_block", "_rand") + key.removeprefix(part)] = shape
    pretrained = _with_twins(pretrained)
    width = sizes["trans_dim"]
    if name in ("pointbert", "act"):
        for part, shape in (
            ("lm_head.weight", [sizes["num_tokens"], width]), ("lm_head.bias", [sizes["num_tokens"]]),
            ("cls_head.0.weight", [sizes["head"], width]), ("cls_head.0.bias", [sizes["head"]]),
            ("cls_head.2.weight", [sizes["head"], sizes["head"]]), ("cls_head.2.bias", [sizes["head"]]),
        ):  # fmt: skip
            pretrained[layout.prefix + part] = [shape, "float32"]
    if bert:
        pretrained["transformer_q.mask_token"] = [[1, 1, width], "float32"]
    if name == "pcp":
        pretrained["MAE_encoder.mask_pos_token"] = [[1, 1, width], "float32"]
        pretrained["pred_pos_proj.0.weight"] = [[width, width], "float32"]
    prefix = layout.prefix
    taken = [key for key in state if prefix + key in pretrained]
    new = [key for key in state if key not in taken and not key.endswith("num_batches_tracked")]
    filled = {key: torch.from_numpy(closed_formula(key, tuple(shape), SALT)) for key, (shape, _) in pretrained.items()}
    for key in filled:
        for later, first in (("conv1.1.", "bn1."), ("conv2.1.", "bn2.")):
            if f".cls.{later}" in key:
                filled[key.replace(later, first)] = filled[key]
    return {
        "prefix": f"module.{prefix}", "pretrain_state_dict": pretrained, "finetune_state_dict": state, "taken": taken,
        "new": new, "pretrain_checksum": checksum(filled.values()), "finetune_config": facts,
    }  # fmt: skip


def _with_twins(state: dict[str, Any]) -> dict[str, Any]:
    """Point-FEMAE's batch norms have two names, the second behind the convolution's."""
    found = {}
    for key, shape in state.items():
        found[key] = shape
        for first, later in (("bn1.", "conv1.1."), ("bn2.", "conv2.1.")):
            if f".cls.{first}" in key:
                found[key.replace(first, later)] = shape
    return found


def _write_checkpoints(folder: Path) -> None:
    config = _model(SIZES["pre"])
    student = PlainStudent(config, MaskingConfig(), teacher_channels=1)
    entries = {f"module.{key}": value for key, value in student.state_dict().items()}
    torch.save({"base_model": entries, "epoch": 3}, folder / "pointmae_pretrain_ckpt.pth")
    tuned = PlainClassifier(config, PlainClassifierConfig(classes=SIZES["fine"]["cls_dim"], hidden=(11, 7)))
    new = {
        f"module.{key}": value
        for key, value in tuned.state_dict().items()
        if tuned.in_head(key) and not key.endswith("num_batches_tracked")
    }
    torch.save({"base_model": new}, folder / "pointmae_finetune_new_keys.pth")
    seg = SIZES["seg"]
    parts = PlainSegmentationConfig(
        parts=50, categories=16, embedding=6, propagation=tuple(seg["prop"]), hidden=tuple(seg["head"])
    )
    state = PlainSegmenter(_model(seg), parts).state_dict()
    assert parts_of(state)["hidden"] == (12, 9)
    torch.save({"epoch": 1, "model_state_dict": state}, folder / "pointmae_partseg_ckpt.pth")


def _inputs() -> dict[str, dict[str, np.ndarray]]:
    generator = torch.Generator().manual_seed(4)

    def cloud() -> np.ndarray:
        points = torch.randn(BATCH, POINTS, 3, generator=generator)
        return (points / points.norm(dim=-1).amax(-1)[..., None, None]).numpy()

    def mask(groups: int, ratio: float) -> np.ndarray:
        order = torch.rand(BATCH, groups, generator=generator).argsort(1)
        return (order < int(ratio * groups)).numpy()

    starts = np.array([3, 0, 2, 20, 11], np.int16)
    seg = {f"eval_block{tap}": np.zeros(1) for tap in (3, 7, 11)} | {"eval_propagation_first17": np.zeros(1)}
    found = {
        "pointmae_pretrain": {"pts": cloud(), "mask": mask(21, 0.7), "block_mask_start": starts},
        "pointmae_finetune": {"pts": cloud(), "label": np.arange(BATCH) % 4},
        "pointmae_partseg": {
            "pts": cloud(), "category": np.arange(BATCH) % 16,
            "target": np.arange(BATCH * POINTS).reshape(BATCH, -1) % 50, "train_log_probs_every3": np.zeros(1), **seg,
        },
    }  # fmt: skip
    for name, member in MEMBERS.items():
        sizes = SIZES[member.sizes]
        ratio = 0.4 if isinstance(sizes["mask_ratio"], list) else sizes["mask_ratio"]
        found[name] = {
            "pts": cloud(), "mask": mask(sizes["num_group"], ratio), "label": np.arange(BATCH) % sizes["cls_dim"],
        }  # fmt: skip
        if name == "femae":
            found[name] |= {"block_mask": mask(sizes["num_group"], ratio), "block_mask_start": starts.clip(max=17)}
        found[name] |= {key: np.zeros(1) for key in getattr(PLAIN_SECTIONS[name], "not_here", ())}
    return found


def _transfer(section: PointMAEFinetune) -> dict[str, list[str]]:
    """What config.json says of the official loader: everything of the encoder is taken."""
    old = section.recorded.checkpoint("pointmae_pretrain_ckpt.pth").entries
    taken = [key.removeprefix("MAE_encoder.") for key in old if key.startswith("MAE_encoder.")]
    new = section.recorded.checkpoint("pointmae_finetune_new_keys.pth").entries
    left = [key for key in old if not key.startswith("MAE_encoder.")]
    return {"taken": taken, "missing": list(new), "unexpected": left}


def _train(section: Section) -> None:
    """Record what is not compared through `check`: names, gradient norms, norms after a step."""
    arrays = section._arrays  # type: ignore[attr-defined]
    assert isinstance(arrays, Recording)
    if isinstance(section, PointMAEPretrain):
        for loss in ("cdl1", "cdl2"):
            model = section._model(loss).train()
            plan = section._plan(model)
            weighted_sum(model.losses(plan, model.network(plan, None))).backward()
            _put_gradients(arrays, "param_names", f"train__grad_norms_{loss}", model)
        arrays.values["buffer_names"] = np.array(
            [name for name, _ in model.named_buffers() if not name.endswith("num_batches_tracked")]
        )
        build_optimizer(model, section.settings.trainer).step()
        norms = [value.detach().double().norm().item() for value in model.parameters()]
        arrays.values["train__param_norms_after_step"] = np.array(norms)
    elif isinstance(section, PointMAEPartseg):
        segmenter = section._model().train()
        points, category, target = section._inputs()
        segmentation_loss(segmenter(points, category), target).backward()
        _put_gradients(arrays, "param_names", "train_grad_norms", segmenter)
    elif isinstance(section, PointMAEFinetune | Relative):
        prefix = "fine__" if isinstance(section, Relative) else ""
        classifier = section._model().train()
        logits = classifier(arrays.tensor("pts"))
        classification_loss(logits, arrays.tensor("label"), smoothing=0.0).backward()
        _put_gradients(arrays, f"{prefix}param_names", f"{prefix}train_grad_norms", classifier)


def _put_gradients(arrays: Recording, names: str, norms: str, model: Any) -> None:
    named = dict(model.named_parameters())
    arrays.values[names] = np.array(list(named))
    arrays.values[norms] = np.array([value.grad.double().norm().item() for value in named.values()])
