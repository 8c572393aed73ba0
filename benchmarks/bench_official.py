"""The official implementation's own pre-training step beside ours: ``python -m benchmarks.bench_official CHECKOUT``.

CHECKOUT is a clone of ZrrSkywalker/I2P-MAE; its model, configuration, optimiser and augmentation are imported from
there. Its step (augmentation, forward, backward, optimiser) takes turns with ours on the same clouds: `reference` and
`recommended` from a cache, the latter in bfloat16 too, and `reference` with the live teacher. Plain torch stands in for
its compiled extensions where they are not installed, and CLIP has random weights, on which time does not depend. On the
CPU.
"""

import argparse
import contextlib
import importlib
import importlib.util
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import teacher_cache
from benchmarks._peers import CLOCKS, in_turn, ratio, timing
from benchmarks._stand_ins import put_in_place, without_gpu
from benchmarks._table import environment
from benchmarks.bench_step import SCHEMA, settings, steps
from pipeline.teacher.tower import load_teacher
from teacher_cache.config import CacheConfig
from teacher_cache.testing.made_up import build

__all__ = ["main"]

RESULTS = Path(__file__).parent / "results" / "official.jsonl"
CONFIG = Path("cfgs/pre-training/i2p-mae.yaml")
PYTHON_PACKAGES = ("easydict", "termcolor", "timm", "h5py", "matplotlib", "tqdm", "ftfy", "regex", "torchvision")
"""What the checkout imports that is plain Python, or has wheels: these are installed, not stood in for."""
ITS_NAMES = ("models", "utils", "tools", "datasets", "extensions", "clip_attn")
VIT_B_16 = {
    "embed_dim": 512,
    "image_resolution": 224,
    "vision_layers": 12,
    "vision_width": 768,
    "vision_patch_size": 16,
    "context_length": 77,
    "vocab_size": 49408,
    "transformer_width": 512,
    "transformer_heads": 8,
    "transformer_layers": 12,
}


@contextlib.contextmanager
def importable(checkout: Path) -> Iterator[None]:
    """The checkout's top-level packages can be imported, and are forgotten afterwards."""
    before = set(sys.modules)
    sys.path.insert(0, str(checkout))
    try:
        with contextlib.chdir(checkout):  # its configurations name each other by relative paths
            yield
    finally:
        sys.path.remove(str(checkout))
        for name in set(sys.modules) - before:
            if name.partition(".")[0] in ITS_NAMES:
                del sys.modules[name]


def official_step(points: Tensor) -> tuple[Callable[[], float], nn.Module]:
    """Its step on copies of ``points`` [B, N, 3], which returns the loss; its model. Within ``importable``."""
    clip = importlib.import_module("clip_attn")

    def random_clip(name: str) -> tuple[nn.Module, None]:
        if name != "ViT-B/16":
            raise ValueError(f"{CONFIG} names the teacher {name!r}; only the sizes of ViT-B/16 are known here")
        return importlib.import_module("clip_attn.model").CLIP(**VIT_B_16), None

    clip.load = random_clip  # type: ignore[attr-defined]
    config = importlib.import_module("utils.config").cfg_from_yaml_file(str(CONFIG))
    config.scheduler.type = "function"  # none: it acts between epochs, and needs an older timm
    builder = importlib.import_module("tools.builder")
    augment = importlib.import_module("datasets.data_transforms").PointcloudScaleAndTranslate()
    model = nn.DataParallel(builder.model_builder(config.model))  # as its runner wraps it; without a GPU it only calls
    optimizer, _ = builder.build_opti_sche(model, config)

    def step() -> float:
        model.train()
        loss_3d, loss_2d = model(augment(points.clone()))
        loss = loss_3d + loss_2d
        loss.backward()
        optimizer.step()
        model.zero_grad()
        return float(loss)

    return step, model.module


def student_parameters(model: nn.Module) -> int:
    """How many are trained: all but the teacher's."""
    return sum(value.numel() for name, value in model.named_parameters() if not name.startswith("clip_model"))


def bench(checkout: Path, batch: int, rounds: int, clock: str) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        build(Path(folder) / "cache", CacheConfig(shapes_per_shard=16), count=96, schema=SCHEMA)
        cache = teacher_cache.open(Path(folder) / "cache")
        points = torch.from_numpy(cache.read(range(batch)).points)
        teacher = load_teacher(replace(settings("reference", batch).teacher, device="cpu"))
        runs: dict[str, Callable[[], object]] = {}
        sizes: dict[str, int] = {}
        recommended = settings("recommended", batch)
        in_half = replace(recommended, trainer=replace(recommended.trainer, precision="bfloat16"))
        for name, experiment, live in (
            ("reference, cached", settings("reference", batch), None),
            ("recommended, cached", recommended, None),
            ("recommended in bfloat16, cached", in_half, None),
            ("reference, live teacher", settings("reference", batch), teacher),
        ):
            runs[name], stepper, _ = steps(experiment, cache, live)
            sizes[name] = sum(value.numel() for value in stepper.model.parameters() if value.requires_grad)
        stood_in = stack.enter_context(put_in_place())
        stack.enter_context(without_gpu())
        stack.enter_context(importable(checkout))
        print(f"stand-ins of plain torch or Python: {', '.join(stood_in) or 'none'}; .cuda() does nothing")
        print("its CLIP and ours: ViT-B/16 with random weights")
        runs["official"], model = official_step(points)
        sizes["official"] = student_parameters(model)
        for name, size in sizes.items():
            print(f"{name}: {size / 1e6:.2f} M trained parameters")
        loss = runs["official"]()
        if not np.isfinite(loss):
            raise ValueError(f"the official step's loss is {loss}; with such weights its time means nothing")
        spent = in_turn(runs, rounds, clock=clock)
    return [
        {
            "case": f"{name}, batch {batch}",
            "ours": vars(timing(spent[name])),
            "official": vars(timing(spent["official"])),
            "ratio": vars(ratio(spent["official"], spent[name])),
        }
        for name in runs
        if name != "official"
    ]


def print_rows(rows: Sequence[dict[str, Any]], clock: str) -> None:
    print(f"\n### The official implementation's own step, {clock} time\n")
    print("| ours | p50 (p20-p80) s | official p50 (p20-p80) s | ratio (p20-p80) |")
    print("| --- | ---: | ---: | ---: |")
    for row in rows:
        ours, theirs, times = row["ours"], row["official"], row["ratio"]
        print(
            f"| {row['case']} | {ours['p50'] / 1e3:.2f} ({ours['p20'] / 1e3:.2f}-{ours['p80'] / 1e3:.2f}) "
            f"| {theirs['p50'] / 1e3:.2f} ({theirs['p20'] / 1e3:.2f}-{theirs['p80'] / 1e3:.2f}) "
            f"| {times['p50']:.1f}x ({times['p20']:.1f}-{times['p80']:.1f}) |"
        )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_official", description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path, help="a clone of github.com/ZrrSkywalker/I2P-MAE")
    parser.add_argument("--batch", type=int, default=4, help="clouds in a batch (default 4)")
    parser.add_argument("--rounds", type=int, default=7, help="in each of which all take a step (default 7)")
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall", help="what is measured (default wall)")
    chosen = parser.parse_args(arguments)
    checkout = chosen.checkout.resolve()
    for path in (CONFIG, Path("models/I2P_MAE.py"), Path("tools/builder.py"), Path("clip_attn/model.py")):
        if not (checkout / path).is_file():
            parser.error(f"{checkout} has no {path}: it is not a clone of github.com/ZrrSkywalker/I2P-MAE")
    if chosen.rounds < 2 or not 1 <= chosen.batch <= 80:
        parser.error(f"--batch {chosen.batch} --rounds {chosen.rounds}: 1 to 80 clouds, and 2 rounds or more")
    missing = [name for name in PYTHON_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        parser.error(f"the checkout imports {', '.join(missing)}; install with: pip install {' '.join(missing)}")
    if torch.cuda.is_available():
        parser.error("both steps are measured on the CPU; hide the GPU: CUDA_VISIBLE_DEVICES= python -m ...")
    for name, value in environment().items():
        print(f"{name}: {value}")
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 (its masking and augmentation draw from it)
    rows = bench(checkout, chosen.batch, chosen.rounds, chosen.clock)
    print_rows(rows, chosen.clock)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(
            json.dumps(
                {"title": "official", "clock": chosen.clock, "environment": environment(), "rows": rows}, sort_keys=True
            )
            + "\n"
        )


if __name__ == "__main__":
    main()
