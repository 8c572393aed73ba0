"""Settings that pre-training and fine-tuning share: how long, in which batches and arithmetic, at which rate, and what
is kept.

A section of an experiment that trains something extends EngineConfig by its own settings; names and meanings are the
same in all of them. `problems` yields every fault, with names relative to the section.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt

from pipeline.settings import device_problems, faults

__all__ = ["EngineConfig", "absurd"]

MAX_SEED = 2**63 - 1
MOST = 10**9  # of anything that is counted
Beta = Annotated[float, Ge(0), Lt(1)]


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Settings of whatever trains weights.

    epochs                 passes over the data, at least 1
    batch_size             shapes in one optimiser step, over all ranks and accumulated parts
    accumulation           parts a rank's share of a batch is computed in, one after the other, to save memory
    learning_rate          AdamW's step size at the top of the schedule
    weight_decay           AdamW's decoupled decay
    no_decay               parameters without decay: "vectors" (1-D tensors, biases, the mask token) or "reference"
                           (those, and every name that contains "token")
    betas                  AdamW's two averaging factors
    epsilon                AdamW's denominator floor
    clip_gradient          largest norm of the whole gradient; 0: no limit
    schedule               "per-step": a cosine that moves at every step; "reference": one value an epoch, an epoch late
    schedule_epochs        epochs at which the cosine reaches the bottom; 0: as many as `epochs`
    warmup_epochs          epochs of linear rise at the start
    warmup_learning_rate   where the rise starts
    final_learning_rate    where the cosine ends
    precision              arithmetic of forward and backward: "float32", or autocast to "bfloat16" or "float16" (GPU)
    compile                run the model through torch.compile
    deterministic          forbid operators whose result changes from run to run (this matters on a GPU only)
    device                 "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:N"; torchrun gives each rank its own
    seed                   draws the first weights, the order of the shapes, and all that is random in a step, 0..2^63-1
    checkpoint_every       epochs between checkpoints, at least 1; the last epoch always leaves one
    checkpoint_steps       steps between checkpoints within an epoch, for long epochs; 0: none. Only the newest is kept
    keep_checkpoints       newest checkpoints of whole epochs that are kept; 0: all
    milestone_every        checkpoints of epochs that this divides are kept for good; 0: none
    tensorboard            write TensorBoard event files beside train.jsonl
    """

    epochs: Annotated[int, Ge(1)] = 300
    batch_size: Annotated[int, Ge(1)] = 64
    accumulation: Annotated[int, Ge(1)] = 1
    learning_rate: Annotated[float, Gt(0)] = 1e-3
    weight_decay: Annotated[float, Ge(0)] = 0.05
    no_decay: Literal["vectors", "reference"] = "vectors"
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    epsilon: Annotated[float, Gt(0)] = 1e-8
    clip_gradient: Annotated[float, Ge(0)] = 0.0
    schedule: Literal["per-step", "reference"] = "per-step"
    schedule_epochs: Annotated[int, Ge(0)] = 0
    warmup_epochs: Annotated[int, Ge(0)] = 10
    warmup_learning_rate: Annotated[float, Ge(0)] = 1e-6
    final_learning_rate: Annotated[float, Ge(0)] = 1e-6
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    compile: bool = False
    deterministic: bool = True
    device: str = "auto"
    seed: Annotated[int, Ge(0), Le(MAX_SEED)] = 0
    checkpoint_every: Annotated[int, Ge(1)] = 1
    checkpoint_steps: Annotated[int, Ge(0)] = 0
    keep_checkpoints: Annotated[int, Ge(0)] = 2
    milestone_every: Annotated[int, Ge(0)] = 0
    tensorboard: bool = True

    @property
    def horizon(self) -> int:
        """Epochs that the cosine spans."""
        return self.schedule_epochs or self.epochs

    def problems(self) -> Iterator[str]:
        """Yield every fault of the section's shared settings, and every absurd number of the whole section."""
        yield from faults(self)
        yield from absurd(self)
        if self.accumulation >= 1 and self.batch_size % self.accumulation:
            yield f"batch_size = {self.batch_size} is not a multiple of accumulation = {self.accumulation}"
        if self.warmup_epochs >= self.horizon >= 1 and self.warmup_epochs > 0:
            name = "schedule_epochs" if self.schedule_epochs else "epochs"
            yield f"warmup_epochs = {self.warmup_epochs} leaves no epoch of {name} = {self.horizon} for the cosine"
        yield from device_problems(self.device)
        if self.precision == "float16" and self.device == "cpu":
            yield 'precision = "float16" needs a GPU, and device = "cpu"; use float32 or bfloat16'


def absurd(section: Any) -> Iterator[str]:
    """Name the counts beyond a billion (the seed excepted), which no run can mean."""
    for name, value in vars(section).items():
        for number in value if isinstance(value, tuple) else (value,):
            if type(number) is int and name != "seed" and abs(number) > MOST:
                yield f"{name} = {value} is more than {MOST:,}"
