"""A full-size pre-training step with the cached teacher and with the live one: ``python -m benchmarks.bench_step``.

The student is the paper's (17.6 M parameters), the teacher a ViT-B/16 with random weights (time does not depend on
them), clouds have 2048 points. The floor is the floating-point operations of the student's matrix products, counted
in the step itself, over the rate of a large float32 product on all threads, measured first. The official
implementation's own step is measured by ``bench_official``.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

import teacher_cache
from benchmarks._table import Row, Timing, environment, measure, print_table, write_json
from cli.experiment.sections import Experiment
from cli.experiment.toml import load_experiment
from pipeline.teacher.live import LiveTeacher
from pipeline.teacher.tower import Teacher, load_teacher
from teacher_cache.config import CacheConfig
from teacher_cache.format.records import CacheSchema
from teacher_cache.testing.made_up import build
from trainer.engine.ranks import Ranks
from trainer.losses.terms import weighted_sum
from trainer.models.build import new_student
from trainer.pretraining.data import Loader, Part
from trainer.pretraining.step import Stepper

__all__ = ["main"]

RESULTS = Path(__file__).parent / "results" / "step.jsonl"
SCHEMA = CacheSchema(points=2048, views=3, image_side=224, patch_side=16, channels=512)
TEACHER = {"channels": 512, "views": 3}
STEPS = 3


def product_rate() -> float:
    """Float32 operations a ms of a 1536 x 1536 matrix product on all threads."""
    a = torch.randn(1536, 1536)
    return float(2 * 1536**3 / measure(lambda: a @ a, seconds=1.0).p20)


def settings(
    preset: str, batch: int, *, compiled: bool = False, device: str = "cpu", overrides: Sequence[str] = ()
) -> Experiment:
    """A preset's model, masking and training on a device, without its long waits."""
    experiment = load_experiment(preset, ["teacher.pretrained=random", "trainer.teacher=cached", *overrides])
    trainer = replace(
        experiment.trainer, batch_size=batch, precision="float32", device=device, compile=compiled, resample=False
    )
    return replace(experiment, trainer=trainer)


def steps(
    experiment: Experiment,
    cache: teacher_cache.Cache,
    teacher: Teacher | None,
    outputs: Mapping[str, int] = TEACHER,
) -> tuple[Callable[[], float], Stepper, Part]:
    """A function that takes one step and returns the ms it waited for data; its stepper, and one part to look at."""
    config = experiment.trainer
    ranks = Ranks(rank=0, size=1, device=torch.device(config.device))
    live = None if teacher is None else LiveTeacher(experiment.projection, teacher)
    stepper = Stepper(new_student(experiment.model, experiment.masking, dict(outputs), seed=0), config, ranks, live)
    loader = Loader(cache, experiment.model, config, ranks, live_teacher=live is not None)

    def batches() -> Iterator[Sequence[Part]]:
        epoch = 0
        while True:
            yield from loader.epoch(epoch)
            epoch += 1

    source = batches()

    def step() -> float:
        start = time.perf_counter()
        parts = next(source)
        waited = time.perf_counter() - start
        stepper.step(parts, 1e-3)
        return waited * 1e3

    return step, stepper, next(loader.epoch(0))[0]


def operations(stepper: Stepper, part: Part) -> float:
    """Floating-point operations of the matrix products in the student's forward and backward pass."""
    model = stepper.model.train()
    plan = model.plan(part.points, part.points_canonical, part.maps, part.draws)
    with FlopCounterMode(display=False) as counter:
        weighted_sum(model.losses(plan, model.network(plan, part.draws.drop_path))).backward()
    stepper.updates.optimizer.zero_grad(set_to_none=True)
    return float(counter.get_total_flops())


def phases(stepper: Stepper, part: Part) -> dict[str, float]:
    """Median ms of each phase of a cached step."""
    model = stepper.model.train()
    plan_of = partial(model.plan, part.points, part.points_canonical, part.maps, part.draws)
    plan = plan_of()

    def forward() -> torch.Tensor:
        return weighted_sum(model.losses(plan, model.network(plan, part.draws.drop_path)))

    def both() -> None:
        stepper.updates.optimizer.zero_grad(set_to_none=True)
        forward().backward()

    spent = {"plan": measure(plan_of, seconds=1, least=STEPS, warmup=1).p50}
    spent["forward"] = measure(forward, seconds=1, least=STEPS, warmup=1).p50
    spent["backward"] = measure(both, seconds=1, least=STEPS, warmup=1).p50 - spent["forward"]
    spent["optimiser"] = measure(stepper.updates.optimizer.step, seconds=0.5, least=STEPS, warmup=1).p50
    return spent


def bench(
    preset: str, batch: int, cache: teacher_cache.Cache, live: Timing, rate: float, *, compiled: bool = False
) -> Row:
    """One row: the cached step, against the reference preset's live step."""
    experiment = settings(preset, batch, compiled=compiled)
    step, stepper, part = steps(experiment, cache, None)
    waits: list[float] = []
    ours = measure(lambda: waits.append(step()), seconds=2, least=STEPS, warmup=2)
    floor = operations(stepper, part) / rate
    if not compiled:
        spent = ", ".join(f"{name} {value:.0f}" for name, value in phases(stepper, part).items())
        print(f"{preset}, batch {batch}: {spent} ms; waiting for data {sorted(waits)[len(waits) // 2]:.1f} ms a step")
    case = f"{preset}{', compiled' if compiled else ''}, batch {batch}"
    return Row(case=case, floor=floor, ours=ours, baseline_name="reference, live teacher", baseline=live)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, action="append", help="batch size; may be given many times (default 4 16)")
    parser.add_argument("--compile", action="store_true", help="also measure torch.compile (minutes of compilation)")
    arguments = parser.parse_args()
    for name, value in environment().items():
        print(f"{name}: {value}")
    rate = product_rate()
    print(f"floors: {rate / 1e6:.0f} Gflop/s of a large float32 matrix product")
    teacher = load_teacher(replace(settings("reference", 4).teacher, device="cpu"))
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder) / "cache", CacheConfig(shapes_per_shard=16), count=96, schema=SCHEMA)
        cache = teacher_cache.open(Path(folder) / "cache")
        for batch in arguments.batch or (4, 16):
            live_step, _, _ = steps(settings("reference", batch), cache, teacher)
            live = measure(live_step, seconds=1, least=STEPS, warmup=1)
            for preset in ("reference", "recommended"):
                for compiled in (False, True) if arguments.compile else (False,):
                    rows.append(bench(preset, batch, cache, live, rate, compiled=compiled))
    print_table("Full-size step", rows)
    write_json(RESULTS, "step", rows)


if __name__ == "__main__":
    main()
