"""The settings of a tiny CLIP's training: the views it sees and how it learns. One frozen dataclass a section."""

from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["LearningConfig", "ViewsConfig"]

REDUCTIONS = ("sum", "mean", "max", "nearest")
SEED_BOUND = 2**32


@dataclass(frozen=True, kw_only=True)
class ViewsConfig:
    """[views]: the images, drawn once ahead. Each shape is drawn in one pose, from the three sides.

    shapes       synthetic objects, three images each
    seed         of the objects and of all that is drawn for them
    points       range of the number of points of a cloud, uniform in its logarithm
    reductions   what a pixel keeps of the depths on it; one of these is drawn for each shape, repeats weigh more
    upright      share of the shapes left as they are modelled
    yaw          share turned about the vertical; the rest are turned by any rotation
    stretch      share scaled along each axis by a factor in 2/3..3/2 (the student's augmentation)
    noise        largest standard deviation of the noise on a cloud's points, in unit-sphere units; drawn for each shape
    depth_offset added to every depth before it is drawn, as projection.depth_offset
    image_side   pixels along an image's side; the architecture's
    patch_side   pixels along a patch's side; the architecture's
    """

    shapes: int = 9000
    seed: int = 1000
    points: tuple[int, int] = (512, 2048)
    reductions: tuple[str, ...] = ("nearest", "nearest", "nearest", "mean", "max", "sum")
    upright: float = 0.2
    yaw: float = 0.5
    stretch: float = 0.4
    noise: float = 0.02
    depth_offset: float = 1.5
    image_side: int = 224
    patch_side: int = 16

    def problems(self) -> Iterator[str]:
        if self.shapes < 1:
            yield f"shapes = {self.shapes} is smaller than 1"
        if not 0 <= self.seed < SEED_BOUND:
            yield f"seed = {self.seed} is outside 0..2^32-1"
        if not 32 <= self.points[0] <= self.points[1]:
            yield f"points = {list(self.points)} is not a range of at least 32, smaller one first"
        wrong = [name for name in self.reductions if name not in REDUCTIONS]
        if wrong or not self.reductions:
            yield f"reductions = {list(self.reductions)} is not a list of {', '.join(REDUCTIONS)}"
        for name in ("upright", "yaw", "stretch"):
            if not 0 <= getattr(self, name) <= 1:
                yield f"{name} = {getattr(self, name)} is outside 0..1"
        if self.upright + self.yaw > 1:
            yield f"upright = {self.upright} and yaw = {self.yaw} add up to more than 1"
        if not 0 <= self.noise <= 0.5:
            yield f"noise = {self.noise} is outside 0..0.5"
        if not 0 <= self.depth_offset <= 4:
            yield f"depth_offset = {self.depth_offset} is outside 0..4"
        if self.image_side < 8 or self.image_side % 2:
            yield f"image_side = {self.image_side} is not an even number of at least 8"
        elif self.patch_side < 1 or self.image_side % self.patch_side:
            yield f"image_side = {self.image_side} is not a multiple of patch_side = {self.patch_side}"


@dataclass(frozen=True, kw_only=True)
class LearningConfig:
    """[learning]: the model and its optimiser.

    architecture     name of a description in pipeline/architectures, or a JSON file like those; of two towers
    steps            optimiser steps of the first part, with patches left out
    batch_size       images, each with its caption, in one step: each is told apart from all the others
    learning_rate    AdamW's at the top of the cosine
    weight_decay     AdamW's, of matrices only
    warmup           share of the steps in which the rate rises
    patch_dropout    share of the patches left out while training, empty ones first; saves as much time
    whole            share of these steps, at their end, that see every patch
    finish           optimiser steps after them, which see every patch, as the finished teacher will
    finish_rate      learning rate at their start; it falls in a cosine of its own
    grounding        weight of the second loss, which tells apart the parts that patches show; 0: captions only
    precision        arithmetic: "bfloat16" autocast or "float32"
    seed             of first weights, order, captions and dropped patches
    device           "auto", "cpu", "cuda" or "cuda:N"
    threads          CPU threads; 0: as many as torch chooses
    checkpoint_every steps between checkpoints
    """

    architecture: str = "i2p-vit-tiny-16"
    steps: int = 2200
    batch_size: int = 64
    learning_rate: float = 5e-4
    weight_decay: float = 0.1
    warmup: float = 0.03
    patch_dropout: float = 0.7
    whole: float = 0.08
    finish: int = 150
    finish_rate: float = 2e-4
    grounding: float = 1.0
    precision: str = "bfloat16"
    seed: int = 0
    device: str = "auto"
    threads: int = 0
    checkpoint_every: int = 50

    @property
    def all_steps(self) -> int:
        """Optimiser steps from the first to the last."""
        return self.steps + self.finish

    def problems(self) -> Iterator[str]:
        for name in ("steps", "checkpoint_every"):
            if getattr(self, name) < 1:
                yield f"{name} = {getattr(self, name)} is smaller than 1"
        if self.batch_size < 2:
            yield f"batch_size = {self.batch_size} leaves nothing to tell an image apart from"
        if not self.learning_rate > 0:
            yield f"learning_rate = {self.learning_rate} is not positive"
        for name in ("weight_decay", "threads", "grounding", "finish", "finish_rate"):
            if getattr(self, name) < 0:
                yield f"{name} = {getattr(self, name)} is negative"
        for name in ("warmup", "whole"):
            if not 0 <= getattr(self, name) <= 1:
                yield f"{name} = {getattr(self, name)} is outside 0..1"
        if not 0 <= self.patch_dropout < 1:
            yield f"patch_dropout = {self.patch_dropout} is outside 0..1 (1 excluded)"
        if self.precision not in ("bfloat16", "float32"):
            yield f"precision = {self.precision!r} is neither bfloat16 nor float32"
        if not 0 <= self.seed < SEED_BOUND:
            yield f"seed = {self.seed} is outside 0..2^32-1"
        kind, _, index = self.device.partition(":")
        if kind not in ("auto", "cpu", "cuda") or (":" in self.device and not (kind == "cuda" and index.isdecimal())):
            yield f"device = {self.device!r} is none of auto, cpu, cuda, cuda:N"
