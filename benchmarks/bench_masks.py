"""A training step of as many samples from several masks of fewer shapes, in turn: ``python -m benchmarks.bench_masks``.

Batches of 32 shapes, 16 shapes with two masks each, 8 with four; reading included, in the step's own thread. Made-up
records of the embedded teacher's sizes; one thread unless --threads says otherwise. CPU seconds are printed beside wall
seconds, because they say the same on a machine that does other work too.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.bench_teachers import SCHEMAS, cache
from cli.experiment.toml import load_experiment
from teacher_cache import Cache
from trainer.engine.ranks import Ranks
from trainer.models.build import new_student
from trainer.pretraining.alignment import Alignment
from trainer.pretraining.data import Loader, Part
from trainer.pretraining.step import Stepper

SAMPLES = 32
PRESETS = ("quickstart", "study", "study-plain")


def batches(loader: Loader) -> Iterator[list[Part]]:
    """Yield batches of one epoch after the other."""
    epoch = 0
    while True:
        yield from loader.epoch(epoch)
        epoch += 1


def main() -> None:
    """Print a line for each preset and number of masks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--preset", action="append", choices=PRESETS, help="may be given many times (default: all)")
    parser.add_argument("--masks", type=int, nargs="+", default=[1, 2, 4])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        opened = cache(Path(folder) / "cache", SCHEMAS[0], 32)
        for preset in options.preset or PRESETS:
            for masks, (wall, cpu, reading) in measure(preset, options.masks, opened, options.steps).items():
                print(
                    f"{preset:<12} masks {masks}: {wall:.2f} ms a sample, CPU {cpu:.2f} ms, of it reading {reading:.2f}"
                )


def measure(preset: str, numbers: list[int], opened: Cache, steps: int) -> dict[int, tuple[float, float, float]]:
    """Masks -> median ms a sample: wall, CPU, CPU for reading."""
    experiment = load_experiment(preset)
    alone = Ranks(rank=0, size=1, device=torch.device("cpu"))
    teacher = {"channels": opened.schema.channels, "views": opened.schema.views}
    alignment = Alignment.of_cache(experiment.alignment, opened, seed=0, device=alone.device, skip_damaged=False)
    sources, steppers = {}, {}
    for masks in numbers:
        config = replace(experiment.trainer, readers=0, batch_size=SAMPLES // masks)
        model = new_student(experiment.model, experiment.masking, teacher, seed=0, whole=True)
        steppers[masks] = Stepper(model, config, alone, None, alignment=alignment)
        sources[masks] = batches(Loader(opened, experiment.model, config, alone, whole=True, masks=masks))
    spent: dict[int, list[tuple[float, float, float]]] = {masks: [] for masks in numbers}
    for _ in range(steps):
        for masks in numbers:
            wall, cpu = time.perf_counter(), time.process_time()
            parts = next(sources[masks])
            read = time.process_time()
            steppers[masks].step(parts, 1e-4)
            spent[masks].append((time.perf_counter() - wall, time.process_time() - cpu, read - cpu))
    per_sample = {masks: 1e3 / SAMPLES * np.array(found[2:]) for masks, found in spent.items()}
    return {masks: tuple(np.median(found, axis=0)) for masks, found in per_sample.items()}


if __name__ == "__main__":
    main()
