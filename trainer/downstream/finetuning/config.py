"""The settings of fine-tuning a classifier, beside those that all training shares."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt

from trainer.engine.config import EngineConfig

__all__ = ["FinetuneConfig"]

MIN_POINTS = 32


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(EngineConfig):
    """[finetune]: a classifier on labelled shapes.

    train, test    corpora, as in corpus.uri, with the same classes
    protocol       "full": all weights are trained; "mlp-3": the head alone, of classifier.hidden's layers; "linear":
                   one linear layer on the pooled feature, whatever classifier.hidden says
    frozen         what "mlp-3" and "linear" do to the encoder: "still": nothing, no batch norm statistics, no drop
                   path; "reference": its batch norms follow the batches and paths are dropped, as in the field
    select         which weights are scored on the test split: "last"; "validation": those with the best accuracy on a
                   part of the training split that is not trained on; "test" (reference): those with the best accuracy
                   on the test split itself, which flatters, and every table says so
    validation_folds  with "validation": one of so many stratified parts of the training split is held out
    stored_points  points read of each shape
    points         of a cloud that the classifier sees
    pool           farthest points they are drawn from in training; 0: as the field has it (1,200 for 1,024)
    sharing        "cloud": each cloud draws its own ranks of the pool; "batch" (reference): a batch has one draw
    frame          "canonical": centred, in the unit sphere; "stored": as the corpus has them (ScanObjectNN)
    scale, shift   augmentation, uniform per axis; (1, 1) and 0: none
    rotation       about the axis `up`: "none", "cloud": each cloud its own angle, or "batch": one a batch (I2P-MAE's)
    up             the axis of `rotation`, "y" or "z"
    drop_path      chance that a residual branch is skipped at the last block, rising from 0
    """

    train: str = ""
    test: str = ""
    protocol: Literal["full", "mlp-3", "linear"] = "full"
    frozen: Literal["still", "reference"] = "still"
    select: Literal["last", "validation", "test"] = "last"
    validation_folds: Annotated[int, Ge(2)] = 10
    stored_points: int = 2048
    points: Annotated[int, Ge(MIN_POINTS)] = 1024
    pool: Annotated[int, Ge(0)] = 0
    sharing: Literal["cloud", "batch"] = "cloud"
    frame: Literal["canonical", "stored"] = "canonical"
    scale: tuple[float, float] = (2 / 3, 3 / 2)
    shift: Annotated[float, Ge(0)] = 0.2
    rotation: Literal["none", "cloud", "batch"] = "none"
    up: Literal["y", "z"] = "z"
    drop_path: Annotated[float, Ge(0), Lt(1)] = 0.1
    batch_size: int = 32
    learning_rate: Annotated[float, Gt(0)] = 5e-4
    clip_gradient: Annotated[float, Ge(0)] = 10.0

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        for name in ("train", "test"):
            if ":" not in getattr(self, name):
                yield f"{name} = {getattr(self, name)!r} is not a corpus; expected KIND:LOCATION"
        if self.stored_points < max(self.points, self.pool):
            yield f"stored_points = {self.stored_points} is less than points = {self.points} or pool = {self.pool}"
        if self.pool and self.pool < self.points:
            yield f"pool = {self.pool} is less than points = {self.points}"
        if not 0 < self.scale[0] <= self.scale[1]:
            yield f"scale = {self.scale} is not an ascending range of positive factors"
        if self.protocol == "full" and self.frozen != "still":
            yield f'frozen = "{self.frozen}" has no effect with protocol = "full", which freezes nothing'
        if self.batch_size < 2:
            yield f"batch_size = {self.batch_size} is smaller than 2: the head normalises over the shapes of a batch"
        for name, value in (("accumulation", 1), ("checkpoint_steps", 0), ("compile", False)):
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
