"""A training step of `quickstart` in float32 and in bfloat16, in turn: ``python -m benchmarks.bench_precision``.

Made-up records of the embedded teacher's sizes; one thread unless --threads says otherwise. CPU seconds are printed
beside wall seconds, because they say the same on a machine that does other work too.
"""

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.bench_teachers import SCHEMAS, cache
from cli.experiment.toml import load_experiment
from trainer.engine.ranks import Ranks
from trainer.models.build import new_student
from trainer.pretraining.alignment import Alignment
from trainer.pretraining.data import Loader
from trainer.pretraining.step import Stepper


def main() -> None:
    """Print a line for each precision."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    experiment = load_experiment("quickstart")
    alone = Ranks(rank=0, size=1, device=torch.device("cpu"))
    with tempfile.TemporaryDirectory() as folder:
        opened = cache(Path(folder) / "cache", SCHEMAS[0], 32)
        teacher = {"channels": opened.schema.channels, "views": opened.schema.views}
        alignment = Alignment.of_cache(experiment.alignment, opened, seed=0, device=alone.device, skip_damaged=False)
        steppers = {}
        for precision in ("float32", "bfloat16"):
            config = replace(experiment.trainer, precision=precision, readers=0)
            model = new_student(experiment.model, experiment.masking, teacher, seed=0, whole=True)
            steppers[precision] = Stepper(model, config, alone, None, alignment=alignment)
        loader = Loader(opened, experiment.model, replace(experiment.trainer, readers=0), alone, whole=True)
        batches = list(loader.epoch(0))
        seconds: dict[str, list[tuple[float, float]]] = {precision: [] for precision in steppers}
        for step in range(options.steps):
            for precision, stepper in steppers.items():
                wall, cpu = time.perf_counter(), time.process_time()
                stepper.step(batches[step % len(batches)], 1e-4)
                seconds[precision].append((time.perf_counter() - wall, time.process_time() - cpu))
    for precision, found in seconds.items():
        wall, cpu = np.median(found[2:], axis=0)
        print(f"{precision:<9} {wall:.3f} s a step, {cpu:.3f} CPU s")


if __name__ == "__main__":
    main()
