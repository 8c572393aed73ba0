"""The settings of a training run and of its evaluation.

One frozen dataclass a section of the experiment file; these are the only places for the defaults. `problems` yields
every fault of a section, with names relative to it. The model's own sections are in `trainer.models.config`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["AlignmentConfig", "EvaluationConfig", "TrainerConfig", "absurd", "alignment_conflicts"]

SEED_BOUND = 2**63
MIN_POINTS = 32
MOST = 10**9  # of anything that is counted


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """[trainer]: how the student is trained.

    epochs                 passes over the cache, at least 1
    cache                  folder or URL of a finished cache to train on; empty: the one that the experiment describes,
                           which is built first
    stale_cache            what is done when files of the corpus changed or went since the cache was built: "refuse", or
                           "train" on the finished cache as it is, without comparing the two
    teacher                whose maps are used: "cached", or those of a "live" teacher that looks at the augmented cloud
                           in every step (the reference's recipe); the cache then gives the clouds only
    batch_size             shapes in one optimiser step, over all ranks and accumulated parts
    accumulation           parts a rank's share of a batch is computed in, one after the other, to save memory
    points                 points of a shape the student sees; 0: all that are stored
    resample               draw the points at random in every epoch; false: the first `points`, in stored order
    renormalise            after drawing fewer points than are stored, centre them and scale them to the unit sphere
    scale                  range of the random factor of each axis; (1, 1): none
    shift                  largest random offset of each axis, in unit-sphere units; 0: none
    learning_rate          AdamW's step size at the top of the schedule
    weight_decay           AdamW's decoupled decay
    no_decay               what is spared the decay: "vectors" (1-D tensors, biases, the mask token) or "reference"
                           (those, and every name that contains "token")
    betas                  AdamW's two averaging factors
    epsilon                AdamW's denominator floor
    weight_2d              factor of the 2D loss in the sum; the reference adds the losses as they are, and squared
                           errors grow with the square of the teacher's features
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
    shuffle_window         cache shards shuffled together; more is nearer to uniform, fewer to sequential reading
    readers                threads that read the cache ahead of the training step; 0: read between the steps
    prefetch               batches kept ready by the readers, at least 1
    damaged                what a record that fails its checksum does: "raise" stops the run, "skip" puts the next sound
                           record of the epoch's order in its place, and counts
    checkpoint_every       epochs between checkpoints, at least 1; the last epoch always leaves one
    checkpoint_steps       steps between checkpoints within an epoch, for long epochs; 0: none. Only the newest is kept
    keep_checkpoints       newest checkpoints of whole epochs that are kept; 0: all
    milestone_every        checkpoints of epochs that this divides are kept for good; 0: none
    tensorboard            write TensorBoard event files beside train.jsonl
    """

    epochs: int = 300
    cache: str = ""
    stale_cache: Literal["refuse", "train"] = "refuse"
    teacher: Literal["cached", "live"] = "cached"
    batch_size: int = 64
    accumulation: int = 1
    points: int = 2048
    resample: bool = True
    renormalise: bool = True
    scale: tuple[float, float] = (2 / 3, 3 / 2)
    shift: float = 0.2
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    no_decay: Literal["vectors", "reference"] = "vectors"
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    weight_2d: float = 1.0
    clip_gradient: float = 0.0
    schedule: Literal["per-step", "reference"] = "per-step"
    schedule_epochs: int = 0
    warmup_epochs: int = 10
    warmup_learning_rate: float = 1e-6
    final_learning_rate: float = 1e-6
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    compile: bool = False
    deterministic: bool = True
    device: str = "auto"
    seed: int = 0
    shuffle_window: int = 16
    readers: int = 2
    prefetch: int = 4
    damaged: Literal["raise", "skip"] = "raise"
    checkpoint_every: int = 1
    checkpoint_steps: int = 0
    keep_checkpoints: int = 2
    milestone_every: int = 0
    tensorboard: bool = True

    @property
    def horizon(self) -> int:
        """Epochs the cosine spans."""
        return self.schedule_epochs or self.epochs

    @property
    def augmented(self) -> bool:
        """True when the student's cloud can differ from the stored one in more than the number of its points."""
        return self.resample or tuple(self.scale) != (1.0, 1.0) or self.shift != 0.0

    def problems(self) -> Iterator[str]:
        yield from absurd(self)
        for name in ("epochs", "batch_size", "accumulation", "prefetch", "checkpoint_every", "shuffle_window"):
            if getattr(self, name) < 1:
                yield f"{name} = {getattr(self, name)} is smaller than 1"
        for name in (
            "schedule_epochs",
            "warmup_epochs",
            "readers",
            "checkpoint_steps",
            "keep_checkpoints",
            "milestone_every",
        ):
            if getattr(self, name) < 0:
                yield f"{name} = {getattr(self, name)} is negative"
        if self.accumulation >= 1 and self.batch_size % self.accumulation:
            yield f"batch_size = {self.batch_size} is not a multiple of accumulation = {self.accumulation}"
        if self.points < 0 or 0 < self.points < MIN_POINTS:
            yield f"points = {self.points} is neither 0 (all stored points) nor at least {MIN_POINTS}"
        if not 0 < self.scale[0] <= self.scale[1]:
            yield f"scale = {self.scale} is not a range of positive factors, smaller one first"
        if self.shift < 0:
            yield f"shift = {self.shift} is negative"
        for name in ("learning_rate", "epsilon"):
            if not getattr(self, name) > 0:
                yield f"{name} = {getattr(self, name)} is not positive"
        for name in ("weight_decay", "weight_2d", "clip_gradient", "warmup_learning_rate", "final_learning_rate"):
            if not getattr(self, name) >= 0:
                yield f"{name} = {getattr(self, name)} is negative"
        if not all(0 <= beta < 1 for beta in self.betas):
            yield f"betas = {self.betas} are not both in 0..1 (1 excluded)"
        if self.warmup_epochs >= self.horizon >= 1 and self.warmup_epochs > 0:
            name = "schedule_epochs" if self.schedule_epochs else "epochs"
            yield f"warmup_epochs = {self.warmup_epochs} leaves nothing of {name} = {self.horizon} for the cosine"
        yield from _not_one_of(self, "teacher", ("cached", "live"))
        yield from _not_one_of(self, "damaged", ("raise", "skip"))
        yield from _not_one_of(self, "no_decay", ("vectors", "reference"))
        yield from _not_one_of(self, "schedule", ("per-step", "reference"))
        yield from _not_one_of(self, "precision", ("float32", "bfloat16", "float16"))
        yield from device_problems(self.device)
        if self.precision == "float16" and self.device == "cpu":
            yield 'precision = "float16" needs a GPU, and device = "cpu"; use float32 or bfloat16'
        if not 0 <= self.seed < SEED_BOUND:
            yield f"seed = {self.seed} is outside 0..2^63-1"


@dataclass(frozen=True, kw_only=True)
class AlignmentConfig:
    """[alignment]: the loss of whole shapes, beside those of tokens; trainer.losses.alignment says what it is.

    weight       factor of the global loss in the sum; 0: off, and the student has no head for it
    temperature  divides the cosines between answers and targets
    negatives    shapes of the corpus, drawn once by the seed, that a shape is told from; 0: those of its batch. More
                 than there are means all
    """

    weight: float = 0.0
    temperature: float = 0.1
    negatives: int = 0

    def problems(self) -> Iterator[str]:
        yield from absurd(self)
        if not self.weight >= 0:
            yield f"weight = {self.weight} is negative"
        if not self.temperature > 0:
            yield f"temperature = {self.temperature} is not positive"
        if self.negatives < 0:
            yield f"negatives = {self.negatives} is negative"


def alignment_conflicts(alignment: AlignmentConfig, trainer: TrainerConfig) -> Iterator[str]:
    """Faults between the two sections, with full names."""
    if alignment.weight > 0 and not alignment.negatives and trainer.batch_size == 1:
        yield (
            f"alignment.weight = {alignment.weight} with trainer.batch_size = 1: a batch of one shape has no other to "
            "be told from, so the loss is always 0; set alignment.negatives, or a weight of 0"
        )


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """[evaluation]: what a linear SVM on the frozen encoder can tell, on labelled shapes.

    train          corpus the SVM is fitted on, as in corpus.uri, labelled; "": no evaluation
    test           corpus it is scored on, with the same labels
    every          epochs between evaluations while training; 0: only after the last epoch
    stored_points  points read of each shape, at least `points`
    points         points of each shape the encoder sees, at least 32
    feature        of the encoder: "levels" (maximum, mean, standard deviation over the tokens of every level), "top"
                   (the maximum over the top level's, as in published numbers), or "auto": "levels", and "top" where
                   protocol is "reference"
    protocol       "cross-validated": features standardised, C chosen on the training split, one score a seed;
                   "reference": raw features, C = `reference_c`, the first `points` points, one score
    grid           values of C tried by cross-validation
    folds          parts of the training split in cross-validation, at least 2
    seeds          scores after training, each with its own draw of points and folds; one during training
    reference_c    C of the reference protocol
    batch_size     shapes encoded at a time
    baselines      after training, also score coordinate statistics and the untrained encoder
    """

    train: str = ""
    test: str = ""
    every: int = 0
    stored_points: int = 2048
    points: int = 1024
    feature: Literal["auto", "levels", "top"] = "auto"
    protocol: Literal["cross-validated", "reference"] = "cross-validated"
    grid: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0, 100.0)
    folds: int = 3
    seeds: int = 5
    reference_c: float = 0.01
    batch_size: int = 32
    baselines: bool = True

    @property
    def enabled(self) -> bool:
        """True when there is something to evaluate on."""
        return bool(self.train and self.test)

    @property
    def model_feature(self) -> Literal["levels", "top"]:
        """The feature that `feature` means."""
        if self.feature != "auto":
            return self.feature
        return "top" if self.protocol == "reference" else "levels"

    def problems(self) -> Iterator[str]:
        yield from absurd(self)
        if bool(self.train) != bool(self.test):
            present, absent = ("train", "test") if self.train else ("test", "train")
            yield f'{absent} = "" while {present} = {getattr(self, present)!r}; name both corpora or neither'
        for name in ("train", "test"):
            uri = getattr(self, name)
            if uri and ":" not in uri:
                yield f"{name} = {uri!r} has no kind; write kind:location, for instance folder:meshes"
        if self.every < 0:
            yield f"every = {self.every} is negative"
        if self.points < MIN_POINTS:
            yield f"points = {self.points} is fewer than {MIN_POINTS}"
        if self.stored_points < self.points:
            yield f"stored_points = {self.stored_points} is fewer than points = {self.points}"
        yield from _not_one_of(self, "feature", ("auto", "levels", "top"))
        yield from _not_one_of(self, "protocol", ("cross-validated", "reference"))
        if not self.grid or not all(c > 0 for c in self.grid):
            yield f"grid = {self.grid} is not a list of positive values of C"
        if self.folds < 2:
            yield f"folds = {self.folds} is smaller than 2"
        for name in ("seeds", "batch_size"):
            if getattr(self, name) < 1:
                yield f"{name} = {getattr(self, name)} is smaller than 1"
        if not self.reference_c > 0:
            yield f"reference_c = {self.reference_c} is not positive"


def device_problems(device: str) -> Iterator[str]:
    """What is wrong with a device's name, if anything; says nothing about whether the device is there."""
    kind, _, index = device.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (":" in device and not (kind == "cuda" and index.isdecimal())):
        yield f"device = {device!r} is none of auto, cpu, cuda, cuda:N"


def absurd(section: Any) -> Iterator[str]:
    """Numbers that no run can mean: infinite ones, and counts beyond a billion (the seed excepted)."""
    for name, value in vars(section).items():
        for number in value if isinstance(value, tuple) else (value,):
            if number == math.inf or number == -math.inf:
                yield f"{name} = {value} is infinite"
            elif type(number) is int and name != "seed" and abs(number) > MOST:
                yield f"{name} = {value} is beyond {MOST:,}"


def _not_one_of(section: object, name: str, allowed: tuple[str, ...]) -> Iterator[str]:
    value = getattr(section, name)
    if value not in allowed:
        yield f"{name} = {value!r} is none of {', '.join(allowed)}"
