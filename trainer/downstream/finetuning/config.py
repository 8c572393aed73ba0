"""The settings of fine-tuning a classifier or a part segmenter, beside those that all training shares."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt

from trainer.engine.config import EngineConfig

__all__ = ["FinetuneConfig", "SegmentConfig", "TuningConfig"]

MIN_POINTS = 32


@dataclass(frozen=True, kw_only=True)
class TuningConfig(EngineConfig):
    """Settings that fine-tuning of both models shares; it is not used by itself.

    train, test    corpora, as in corpus.uri, with the same classes
    select         which weights are scored on the test split: "last"; "validation": those that were best on a part of
                   the training split that is not trained on; "test" (reference): those that were best on the test split
                   itself, which flatters, and every table says so
    validation_folds  with "validation": one of so many stratified parts of the training split is held out
    stored_points  points read of each shape
    points         of a cloud that the model sees
    frame          "canonical": centred, in the unit sphere; "stored": as the corpus has them (ScanObjectNN)
    scale, shift   augmentation, uniform; (1, 1) and 0: none
    rotation       about the axis `up`: "none", "cloud": each cloud its own angle, or "batch": one a batch (I2P-MAE's)
    up             the axis of `rotation`, "y" or "z"
    drop_path      chance that a residual branch is skipped at the last block, rising from 0
    encoder_rate   factor of the learning rate for the encoder's weights; below 1 they stay nearer to what they were
    """

    train: str = ""
    test: str = ""
    select: Literal["last", "validation", "test"] = "last"
    validation_folds: Annotated[int, Ge(2)] = 10
    stored_points: int = 2048
    points: Annotated[int, Ge(MIN_POINTS)] = 1024
    frame: Literal["canonical", "stored"] = "canonical"
    scale: tuple[float, float] = (2 / 3, 3 / 2)
    shift: Annotated[float, Ge(0)] = 0.2
    rotation: Literal["none", "cloud", "batch"] = "none"
    up: Literal["y", "z"] = "z"
    drop_path: Annotated[float, Ge(0), Lt(1)] = 0.1
    encoder_rate: Annotated[float, Gt(0)] = 1.0
    clip_gradient: Annotated[float, Ge(0)] = 10.0

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        for name in ("train", "test"):
            if ":" not in getattr(self, name):
                yield f"{name} = {getattr(self, name)!r} is not a corpus; expected KIND:LOCATION"
        if self.stored_points < self.points:
            yield f"stored_points = {self.stored_points} is less than points = {self.points}"
        if not 0 < self.scale[0] <= self.scale[1]:
            yield f"scale = {self.scale} is not an ascending range of positive factors"
        if 1 <= self.accumulation <= self.batch_size < 2 * self.accumulation:
            yield (
                f"batch_size = {self.batch_size} in accumulation = {self.accumulation} parts leaves fewer than 2 "
                "shapes a part: the head normalises over the shapes of a part"
            )
        for name, value in (("checkpoint_steps", 0), ("compile", False)):
            if getattr(self, name) != value:
                yield f"{name} = {getattr(self, name)}: fine-tuning supports only {name} = {value}"

    def augmentation(self) -> str:
        """What tables say of it: figures of other augmentations are up to three points apart."""
        words = []
        if self.scale != (1, 1) or self.shift:
            words.append(f"scale {self.scale[0]:.3g}..{self.scale[1]:.3g}, shift {self.shift:.3g}")
        if self.rotation != "none":
            words.append(f"rotated about {self.up}, one angle a {self.rotation}")
        return ", ".join(words) or "none"


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(TuningConfig):
    """[finetune] of a classifier on labelled shapes: the settings of TuningConfig, and these.

    protocol       "full": all weights are trained; "mlp-3": the head alone, of classifier.hidden's layers; "linear":
                   one linear layer on the pooled feature, whatever classifier.hidden says
    frozen         what "mlp-3" and "linear" do to the encoder: "still": nothing, no batch norm statistics, no drop
                   path; "reference": its batch norms follow the batches and paths are dropped, as in the field
    head           how the head begins: "new", or "fitted": its one linear layer is that of logistic regression on the
                   pooled feature of the training shapes as they are, C cross-validated on them. Source: Kumar et al.
                   2022, who fit by steps
    pool           farthest points they are drawn from in training; 0: as the field has it (1,200 for 1,024)
    sharing        "cloud": each cloud draws its own ranks of the pool; "batch" (reference): a batch has one draw
    """

    protocol: Literal["full", "mlp-3", "linear"] = "full"
    frozen: Literal["still", "reference"] = "still"
    head: Literal["new", "fitted"] = "new"
    pool: Annotated[int, Ge(0)] = 0
    sharing: Literal["cloud", "batch"] = "cloud"
    batch_size: int = 32
    learning_rate: Annotated[float, Gt(0)] = 5e-4

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.pool > self.stored_points:
            yield f"stored_points = {self.stored_points} is less than pool = {self.pool}"
        if self.pool and self.pool < self.points:
            yield f"pool = {self.pool} is less than points = {self.points}"
        if self.protocol == "full" and self.frozen != "still":
            yield f'frozen = "{self.frozen}" has no effect with protocol = "full", which freezes nothing'
        if self.protocol != "full" and self.encoder_rate != 1:
            yield (
                f'encoder_rate = {self.encoder_rate} has no effect with protocol = "{self.protocol}", which trains the '
                "head alone"
            )


@dataclass(frozen=True, kw_only=True)
class SegmentConfig(TuningConfig):
    """[finetune] of a part segmenter on shapes with part labels: the settings of TuningConfig, and these.

    sampling       how `points` are drawn of the stored ones, in training anew for each epoch, for tests once by the
                   seed: "distinct"; or "replacement" (reference): one point may be drawn many times
    scaling        "cloud": one factor a cloud (reference); "axis": one for each axis
    updates        optimiser steps a batch: 1; or 2 (reference): by the gradient as it is, then by the same one clipped
    rivals         the parts that a point's own is set against in the loss: "all" (reference), or "category": those of
                   its shape's category, which alone can be answered
    """

    points: Annotated[int, Ge(MIN_POINTS)] = 2048
    scale: tuple[float, float] = (0.8, 1.25)
    shift: Annotated[float, Ge(0)] = 0.1
    sampling: Literal["distinct", "replacement"] = "distinct"
    scaling: Literal["cloud", "axis"] = "cloud"
    updates: Literal[1, 2] = 1
    rivals: Literal["all", "category"] = "all"
    batch_size: int = 16
    learning_rate: Annotated[float, Gt(0)] = 2e-4

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.updates == 2 and self.precision == "float16":
            yield 'updates = 2 with precision = "float16", whose loss scale allows one step a gradient'

    def augmentation(self) -> str:
        words = super().augmentation()
        return words.replace("scale", f"scale by {self.scaling}") if "scale" in words else words
