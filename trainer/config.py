"""The settings of a training run and of its evaluation.

One frozen dataclass a section of the experiment file; these are the only places for the defaults. `problems` yields
every fault of a section, with names relative to it. The model's own sections are in `trainer.models.config`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, MinLen

from pipeline.settings import faults
from trainer.engine.config import EngineConfig, absurd

__all__ = [
    "AlignmentConfig",
    "EvaluationConfig",
    "TeachersConfig",
    "TrainerConfig",
    "absurd",
    "alignment_conflicts",
    "teachers_conflicts",
]

MIN_POINTS = 32
EMBEDDED_POINTS = 128  # groups of the package's own encoder at its first level
Factor = Annotated[float, Gt(0)]


@dataclass(frozen=True, kw_only=True)
class TrainerConfig(EngineConfig):
    """[trainer]: how the student is trained; the settings of EngineConfig, and these.

    cache                  folder or URL of a finished cache to train on; empty: the one that the experiment describes,
                           which is built first
    stale_cache            what to do when files of the corpus changed or vanished since the cache was built: "refuse",
                           or "train" on the finished cache as it is, without comparing the two
    teacher                whose maps are used: "cached", or those of a "live" teacher that encodes the augmented cloud
                           in every step (the reference's recipe); the cache then gives the clouds only
    points                 points of a shape the student sees; 0: all that are stored
    resample               draw the points at random in every epoch; false: the first `points`, in stored order
    renormalise            after drawing fewer points than are stored, centre them and scale them to the unit sphere
    scale                  range of the random factor of each axis; (1, 1): none
    shift                  largest random offset of each axis, in unit-sphere units; 0: none
    weight_2d              factor of the 2D loss in the sum; the reference adds the losses as they are, and squared
                           errors grow with the square of the teacher's features
    shuffle_window         cache shards shuffled together; more is nearer to uniform, fewer to sequential reading
    readers                threads that read the cache ahead of the training step; 0: read between the steps
    prefetch               batches kept ready by the readers, at least 1
    damaged                how a record that fails its checksum is handled: "raise" stops the run, "skip" puts the next
                           sound record of the epoch's order in its place, and counts
    """

    cache: str = ""
    stale_cache: Literal["refuse", "train"] = "refuse"
    teacher: Literal["cached", "live"] = "cached"
    points: Annotated[int, Ge(0)] = 2048
    resample: bool = True
    renormalise: bool = True
    scale: tuple[Factor, Factor] = (2 / 3, 3 / 2)
    shift: Annotated[float, Ge(0)] = 0.2
    weight_2d: Annotated[float, Ge(0)] = 1.0
    shuffle_window: Annotated[int, Ge(1)] = 16
    readers: Annotated[int, Ge(0)] = 2
    prefetch: Annotated[int, Ge(1)] = 4
    damaged: Literal["raise", "skip"] = "raise"

    @property
    def loss_weights(self) -> dict[str, float]:
        """Factors of the losses in the sum, by name; a loss without one has factor 1."""
        return {"2d": self.weight_2d}

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if 0 < self.points < MIN_POINTS:
            yield f"points = {self.points} is neither 0 (all stored points) nor at least {MIN_POINTS}"
        if tuple(self.scale) != tuple(sorted(self.scale)):
            yield f"scale = {self.scale} is not an ascending range"


@dataclass(frozen=True, kw_only=True)
class AlignmentConfig:
    """[alignment]: the global loss, on whole shapes, beside those on tokens; see trainer.losses.alignment.

    weight       factor of the global loss in the sum; 0: off, and the student has no head for it
    temperature  divides the cosines between answers and targets
    negatives    shapes of the corpus, drawn once by the seed, that serve as negatives; 0: those of the batch. More than
                 there are means all
    contrast     what is contrasted: "joined", the views of a shape as one vector, or "views", each view of a shape with
                 the same view of others, the mean over views
    """

    weight: Annotated[float, Ge(0)] = 0.0
    temperature: Annotated[float, Gt(0)] = 0.1
    negatives: Annotated[int, Ge(0)] = 0
    contrast: Literal["joined", "views"] = "joined"

    def problems(self) -> Iterator[str]:
        yield from faults(self)
        yield from absurd(self)


def alignment_conflicts(alignment: AlignmentConfig, trainer: TrainerConfig) -> Iterator[str]:
    """Yield faults between the two sections, with full names."""
    if alignment.weight > 0 and not alignment.negatives and trainer.batch_size == 1:
        yield (
            f"alignment.weight = {alignment.weight} with trainer.batch_size = 1: a batch of one shape has no "
            "negatives, so the loss is always 0; set alignment.negatives, or alignment.weight = 0"
        )


@dataclass(frozen=True, kw_only=True)
class TeachersConfig:
    """[teachers]: teachers beside the one that the experiment describes, each by a finished cache of the same shapes.

    The first cache gives clouds, saliency and targets of its own; the others 2D and class targets, each with its heads.

    caches          folders or URLs of the further teachers' caches, the second teacher's first
    weights_2d      a factor of the 2D loss for each teacher, the first included, times trainer.weight_2d; empty: 1 each
    weights_global  a factor of the global loss for each, the first included, times alignment.weight; empty: 1 each. A
                    further teacher's loss of factor 0 is left out, and with both 0 its cache is not read
    """

    caches: tuple[str, ...] = ()
    weights_2d: tuple[Annotated[float, Ge(0)], ...] = ()
    weights_global: tuple[Annotated[float, Ge(0)], ...] = ()

    def factors(self, teachers: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return the factors of the 2D and of the global loss, one a teacher each."""
        return self.weights_2d or (1.0,) * teachers, self.weights_global or (1.0,) * teachers

    def problems(self) -> Iterator[str]:
        yield from faults(self)
        if "" in self.caches:
            yield f"caches = {self.caches} has an empty name"


def teachers_conflicts(teachers: TeachersConfig, trainer: TrainerConfig, count: int) -> Iterator[str]:
    """Yield faults between [teachers], [trainer] and the number of teachers, with full names."""
    for name in ("weights_2d", "weights_global"):
        given = getattr(teachers, name)
        if given and len(given) != count:
            yield f"teachers.{name} = {given} has {len(given)} factors for {count} teachers; give one each, or none"
    if count > 1 and trainer.teacher == "live":
        yield (
            'trainer.teacher = "live" with several teachers: a live one looks at the augmented cloud, and the others '
            "at the stored one; leave teachers.caches empty, or use cached teachers"
        )


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """[evaluation]: accuracy of a linear SVM on the frozen encoder's features of labelled shapes.

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
    embedded       among the baselines, score the package's own encoder too, of 128 groups
    """

    train: str = ""
    test: str = ""
    every: Annotated[int, Ge(0)] = 0
    stored_points: int = 2048
    points: Annotated[int, Ge(MIN_POINTS)] = 1024
    feature: Literal["auto", "levels", "top"] = "auto"
    protocol: Literal["cross-validated", "reference"] = "cross-validated"
    grid: Annotated[tuple[Factor, ...], MinLen(1)] = (0.01, 0.1, 1.0, 10.0, 100.0)
    folds: Annotated[int, Ge(2)] = 3
    seeds: Annotated[int, Ge(1)] = 5
    reference_c: Annotated[float, Gt(0)] = 0.01
    batch_size: Annotated[int, Ge(1)] = 32
    baselines: bool = True
    embedded: bool = False

    @property
    def enabled(self) -> bool:
        """True when there are corpora to evaluate on."""
        return bool(self.train and self.test)

    @property
    def model_feature(self) -> Literal["levels", "top"]:
        """The feature that `feature` stands for."""
        if self.feature != "auto":
            return self.feature
        return "top" if self.protocol == "reference" else "levels"

    def problems(self) -> Iterator[str]:
        yield from faults(self)
        yield from absurd(self)
        if bool(self.train) != bool(self.test):
            present, absent = ("train", "test") if self.train else ("test", "train")
            yield f'{absent} = "" while {present} = {getattr(self, present)!r}; set both or neither'
        for name in ("train", "test"):
            uri = getattr(self, name)
            if uri and ":" not in uri:
                yield f"{name} = {uri!r} has no kind; expected KIND:LOCATION, for instance folder:meshes"
        if self.embedded and self.points < EMBEDDED_POINTS:
            yield f"points = {self.points} is less than the {EMBEDDED_POINTS} that embedded = true needs"
        if self.stored_points < self.points:
            yield f"stored_points = {self.stored_points} is less than points = {self.points}"
