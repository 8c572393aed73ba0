"""A folder laid out like the recorded one at other sizes. Its arrays are our own: it tests that no size is assumed."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.parity.compare import Row
from benchmarks.parity.recorded import Arrays, Missing, Recorded
from benchmarks.parity.runner import SECTIONS
from benchmarks.parity.section import Section
from benchmarks.parity.sections.finetune import Finetune
from benchmarks.parity.sections.partseg import Partseg
from benchmarks.parity.sections.pretrain import Pretrain
from cli.experiment.sections import Experiment
from tests.support.parity import write_arrays
from tests.support.teachers import clip_state
from trainer.engine.optimiser import build_optimizer
from trainer.losses.terms import weighted_sum
from trainer.models.heads.classifier import Classifier
from trainer.models.heads.config import MODELNET40, SCANOBJECTNN, SegmentationConfig
from trainer.models.heads.part_segmenter import PartSegmenter, segmentation_loss
from trainer.models.hierarchical.student import I2PMAE


@dataclass(frozen=True)
class Sizes:
    """What a folder is recorded at: pixels of an image and of a patch, and config.json's sizes."""

    image: int
    patch: int
    config: dict[str, Any]

    @property
    def side(self) -> int:
        """Patches along an image."""
        return self.image // self.patch


def _sizes(image: int, patch: int, encoder: dict[str, Any], clip: dict[str, int], **own: dict[str, Any]) -> Sizes:
    config: dict[str, Any] = {"proj": {"blob": 300, "stick": 77}, "clip": clip, "salt": "B"}
    return Sizes(image, patch, config | {name: encoder | section for name, section in own.items()})


ENCODER = {"encoder_dims": [16, 24, 64], "encoder_depths": [1, 2, 1], "num_groups": [40, 20, 10], "num_heads": 4}
NEAR = _sizes(
    64, 16, ENCODER, {"embed_dim": 20, "layers": 2, "width": 64},
    pre={
        "group_sizes": [6, 5, 4],
        "decoder_dims": [64, 24],
        "decoder_depths": [2, 1],
        "decoder_up_blocks": [2],
        "local_radius": [0, 0, 0],
        "mask_ratio": 0.6,
    },
    fine={"group_sizes": [9, 5, 4], "radius_mn": [0.4, 0.7, 1.0], "radius_scan": [0.5, 0, 2], "smooth": 0.1},
    seg={"group_sizes": [7, 5, 4], "local_radius": [0.5, 0.8, 1.2], "mlp": [24, 20], "head": [32, 24, 16]},
)  # fmt: skip
"""The recorded folder's forms at other sizes."""
APART = _sizes(
    50, 10, {"encoder_dims": [18, 30, 48], "encoder_depths": [3, 1, 2], "num_groups": [43, 29, 11], "num_heads": 3},
    {"embed_dim": 13, "layers": 3, "width": 128},
    pre={
        "group_sizes": [5, 8, 7],
        "decoder_dims": [48, 30],
        "decoder_depths": [1, 3],
        "decoder_up_blocks": [0],
        "local_radius": [0, 0, 0],
        "mask_ratio": 0.35,
    },
    fine={"group_sizes": [12, 4, 9], "radius_mn": [0, 0.7, 0.8], "radius_scan": [0.6, 0.5, 0], "smooth": 0.3},
    seg={"group_sizes": [4, 10, 6], "local_radius": [0, 0.9, 0.7], "mlp": [19, 27], "head": [14, 33, 21]},
)  # fmt: skip
"""No two sizes agree that agree in the recorded folder: neither widths, depths nor group sizes of levels."""
RECORDED = ("projection", "backprojection", "teacher", "grouping", "pretrain", "finetune", "partseg")


class Recording(Arrays):
    """Arrays that are written by being compared."""

    def __init__(self, file: str, values: dict[str, np.ndarray]):
        self.file = file
        self.values = values

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(self.values)

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.values:
            raise Missing(f"{self.file}: {name}")
        return self.values[name]

    def check(self, what: str, name: str, ours: Any, tolerance: str, *, at: Any = ...) -> Row:
        array = np.asarray(ours.detach().numpy() if isinstance(ours, Tensor) else ours)
        if isinstance(at, np.ndarray):
            self.values[name] = np.zeros((*at.shape, *array.shape[1:]), array.dtype)
            self.values[name][at] = array
        elif at is ...:
            self.values[name] = array
        return Row(what=what)

    def unread(self) -> list[str]:
        return []


class Recorder(Recorded):
    """A folder whose arrays are recordings."""

    def __init__(self, folder: Path, inputs: dict[str, dict[str, np.ndarray]]):
        super().__init__(folder)
        self.recordings = {stem: Recording(f"{stem}.npz", values) for stem, values in inputs.items()}
        self.arrays = self.recordings.__getitem__  # type: ignore[assignment]


def record(folder: Path, settings: Experiment, sizes: Sizes = NEAR) -> None:
    """Write everything that the RECORDED sections read, at sizes of our own choice, with what we compute from it.

    What config.json notes about the reference's behaviour is left empty.
    """
    folder.mkdir()
    generator = torch.Generator().manual_seed(3)
    (folder / "config.json").write_text(json.dumps({"config": sizes.config}))
    _write_checkpoints(folder, settings, sizes)
    recorder = Recorder(folder, _inputs(generator, sizes))
    for name in RECORDED:
        section = SECTIONS[name](recorder, settings, torch.device("cpu"))
        _train(section)
        for work in section.parts().values():
            try:
                list(work())
            except Missing as absent:
                if not absent.what.startswith(("config.json: ", "partseg.npz: full_")):  # notes; full-size models
                    raise
    for stem, recording in recorder.recordings.items():
        write_arrays(folder / f"{stem}.npz", recording.values)


def _inputs(generator: torch.Generator, sizes: Sizes) -> dict[str, dict[str, np.ndarray]]:
    """Inputs, and an array of the right shape wherever sizes are read off a result."""

    def cloud(*shape: int) -> np.ndarray:
        points = torch.randn(*shape, 3, generator=generator)
        return (points / points.norm(dim=-1).amax(-1)[..., None, None]).numpy()

    def numbers(*shape: int) -> np.ndarray:
        return torch.randn(*shape, generator=generator).numpy()

    def whole(bound: int, *shape: int) -> np.ndarray:
        return torch.randint(bound, shape, generator=generator).numpy()

    image = np.zeros((sizes.image, sizes.image), np.float32)
    grouping = {"pts": cloud(2, 400)}
    for prefix in ("skip", "plain"):
        for level, (groups, k) in enumerate(((50, 5), (20, 3))):
            grouping[f"{prefix}__fps_l{level}"] = np.zeros((2, groups))
            grouping[f"{prefix}__knn_l{level}"] = np.zeros((2, groups, k))
    for level in (0, 1):
        grouping |= {f"skip__{kind}_l{level}_first3": image for kind in ("neigh", "neigh_ori")}
    order = np.stack(
        [np.random.default_rng(seed).permutation(sizes.config["pre"]["num_groups"][-1]) for seed in range(3)]
    )
    classes = {"modelnet40": 7, "scanobjectnn": 5}
    finetune = {f"{name}__pts": cloud(5, 150) for name in classes}
    finetune |= {f"{name}__label": whole(count, 5) for name, count in classes.items()}
    return {
        "projection": {"blob__pts": cloud(300), "stick__pts": cloud(77) * np.float32([1, 0.1, 0.2]), "blob__img": image}
        | {"stick__sum": image, "stick__sigmoid": image, "duo__pts": cloud(3, 50)},
        "backprojection": {"pts": cloud(3, 120), "query_idx": whole(120, 3, 30), "upsampled_1_2_0": image}
        | {"feats": numbers(3, 3, 5, sizes.side, sizes.side), "sal": numbers(3, 3, 1, sizes.side, sizes.side) / 200},
        "teacher": {"imgs": numbers(3, 3, sizes.image, sizes.image)},
        "grouping": grouping,
        "model_pretrain": {"pts": cloud(3, 200), "mask_ids": order},
        "finetune": finetune,
        "partseg": {"pts": cloud(3, 160), "category": whole(4, 3), "target": whole(9, 3, 160)},
    }


def _write_checkpoints(folder: Path, settings: Experiment, sizes: Sizes) -> None:
    clip, pre = sizes.config["clip"], sizes.config["pre"]
    vision = {
        "image_size": sizes.image,
        "patch_size": sizes.patch,
        "head_width": 64,
        "width": clip["width"],
        "layers": clip["layers"],
    }
    text = {"context_length": 8, "vocab_size": 64, "width": 64, "heads": 1, "layers": 1}
    teacher = clip_state({"embed_dim": clip["embed_dim"], "vision_cfg": vision, "text_cfg": text})
    torch.save(teacher, folder / "teacher_openai.pt")

    encoder = {
        "groups": tuple(pre["num_groups"]),
        "encoder_dims": tuple(pre["encoder_dims"]),
        "encoder_depths": tuple(pre["encoder_depths"]),
        "heads": pre["num_heads"],
        "embed_first": (20, 28),
    }
    decoder = {name: tuple(pre[name]) for name in ("decoder_dims", "decoder_depths", "decoder_up_blocks")}
    model = replace(settings.model, **encoder, **decoder, neighbours=tuple(pre["group_sizes"]))
    student = I2PMAE(model, settings.masking, teacher_channels=clip["embed_dim"])
    beside = {f"module.clip_model.{name}": value for name, value in teacher.items()}
    _save(folder / "pretrain_ckpt.pth", student, **beside)

    model = replace(
        settings.model, **encoder, decoder_dims=(pre["encoder_dims"][-1],), decoder_depths=(1,), decoder_up_blocks=()
    )
    for name, base, classes in (("modelnet40", MODELNET40, 7), ("scanobjectnn", SCANOBJECTNN, 5)):
        config = replace(base, classes=classes, hidden=(32, 20), neighbours=tuple(sizes.config["fine"]["group_sizes"]))
        _save(folder / f"finetune_ckpt_{name}.pth", Classifier(model, config))
    seg = sizes.config["seg"]
    config = SegmentationConfig(
        parts=9,
        categories=4,
        embedding=8,
        neighbours=tuple(seg["group_sizes"]),
        propagation=tuple(seg["mlp"]),
        hidden=tuple(seg["head"]),
    )
    torch.save({"epoch": 1, "model_state_dict": PartSegmenter(model, config).state_dict()}, folder / "partseg_ckpt.pth")


def _save(path: Path, model: nn.Module, **beside: Tensor) -> None:
    entries = {f"module.{name}": value for name, value in model.state_dict().items()}
    torch.save({"base_model": entries | beside, "epoch": 1}, path)


def _train(section: Section) -> None:
    """Record what is not compared through `check`: names, gradient norms, norms after a step."""
    if isinstance(section, Pretrain):
        arrays, model = section._arrays, section._model().train()
        plan = section._plan(model)
        weighted_sum(model.losses(plan, model.network(plan, None))).backward()
        buffers = [name for name, _ in model.named_buffers() if not name.endswith("num_batches_tracked")]
        _put(arrays, "buffer_names", buffers)
        _put_gradients(arrays, "param_names", "train__grad_norms", model)
        build_optimizer(model, section.settings.trainer).step()
        norms = [value.detach().double().norm().item() for value in model.parameters()]
        _put(arrays, "train__param_norms_after_step", norms)
    elif isinstance(section, Finetune):
        for name in ("modelnet40", "scanobjectnn"):
            model = section._model(name).train()
            points, label = (section._arrays.tensor(f"{name}__{key}") for key in ("pts", "label"))
            section._loss(model, model(points), label).backward()
            _put_gradients(section._arrays, f"{name}__param_names", f"{name}__train_grad_norms", model)
    elif isinstance(section, Partseg):
        model = section._model().train()
        points, category, target = (section._arrays.tensor(key) for key in ("pts", "category", "target"))
        segmentation_loss(model(points, category), target).backward()
        _put_gradients(section._arrays, "param_names", "train_grad_norms", model)


def _put_gradients(arrays: Arrays, names: str, norms: str, model: nn.Module) -> None:
    named = dict(model.named_parameters())
    _put(arrays, names, list(named))
    _put(arrays, norms, [np.nan if p.grad is None else p.grad.double().norm().item() for p in named.values()])


def _put(arrays: Arrays, name: str, values: list[Any]) -> None:
    assert isinstance(arrays, Recording)
    arrays.values[name] = np.array(values)
