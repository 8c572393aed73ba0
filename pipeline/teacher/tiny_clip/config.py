"""The settings of a tiny CLIP's training: views and learning. One frozen dataclass per section."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt, MinLen

from pipeline.settings import device_problems, faults

__all__ = ["LearningConfig", "ViewsConfig"]

Reduction = Literal["sum", "mean", "max", "nearest"]
Seed = Annotated[int, Ge(0), Le(2**32 - 1)]
Share = Annotated[float, Ge(0), Le(1)]


@dataclass(frozen=True, kw_only=True)
class ViewsConfig:
    """[views]: the images, rendered in advance. Each shape is rendered in one pose, from three sides.

    shapes       synthetic objects, three images each
    seed         of the objects and of all that is drawn for them
    points       range of the number of points of a cloud, uniform in its logarithm
    reductions   how a pixel reduces the depths on it; one of these is drawn for each shape, repeats weigh more
    upright      share of the shapes left as they are modelled
    yaw          share turned about the vertical; the rest are turned by any rotation
    stretch      share scaled along each axis by a factor in 2/3..3/2 (the student's augmentation)
    noise        largest standard deviation of the noise on a cloud's points, in unit-sphere units; drawn for each shape
    depth_offset added to every depth before it is drawn, as projection.depth_offset
    image_side   pixels along an image's side; the architecture's
    patch_side   pixels along a patch's side; the architecture's
    """

    shapes: Annotated[int, Ge(1)] = 9000
    seed: Seed = 1000
    points: tuple[Annotated[int, Ge(32)], Annotated[int, Ge(32)]] = (512, 2048)
    reductions: Annotated[tuple[Reduction, ...], MinLen(1)] = ("nearest", "nearest", "nearest", "mean", "max", "sum")
    upright: Share = 0.2
    yaw: Share = 0.5
    stretch: Share = 0.4
    noise: Annotated[float, Ge(0), Le(0.5)] = 0.02
    depth_offset: Annotated[float, Ge(0), Le(4)] = 1.5
    image_side: Annotated[int, Ge(8)] = 224
    patch_side: Annotated[int, Ge(1)] = 16

    def problems(self) -> Iterator[str]:
        yield from faults(self)
        if self.points[0] > self.points[1]:
            yield f"points = {self.points} is not an ascending range"
        if self.upright + self.yaw > 1:
            yield f"upright = {self.upright} and yaw = {self.yaw} sum to more than 1"
        if self.image_side % 2:
            yield f"image_side = {self.image_side} is not an even number"
        if self.patch_side > 0 and self.image_side % self.patch_side:
            yield f"image_side = {self.image_side} is not a multiple of patch_side = {self.patch_side}"


@dataclass(frozen=True, kw_only=True)
class LearningConfig:
    """[learning]: the model and its optimiser.

    architecture     name of a description in pipeline/architectures, or a JSON file like those; of two towers
    steps            optimiser steps of the first part, with patches left out
    batch_size       images, each with its caption, in one step: each is contrasted with all others
    learning_rate    AdamW's at the top of the cosine
    weight_decay     AdamW's, of matrices only
    warmup           share of the steps in which the rate rises
    patch_dropout    share of the patches left out while training, empty ones first; saves as much time
    whole            share of these steps, at their end, that see every patch
    finish           optimiser steps after them, which see every patch, as the finished teacher will
    finish_rate      learning rate at their start; it falls in a cosine of its own
    grounding        weight of the second loss, which classifies the parts that patches show; 0: captions only
    precision        arithmetic: "bfloat16" autocast or "float32"
    seed             of first weights, order, captions and dropped patches
    device           "auto", "cpu", "cuda" or "cuda:N"
    threads          CPU threads; 0: as many as torch chooses
    checkpoint_every steps between checkpoints
    """

    architecture: str = "i2p-vit-tiny-16"
    steps: Annotated[int, Ge(1)] = 2200
    batch_size: Annotated[int, Ge(2)] = 64
    learning_rate: Annotated[float, Gt(0)] = 5e-4
    weight_decay: Annotated[float, Ge(0)] = 0.1
    warmup: Share = 0.03
    patch_dropout: Annotated[float, Ge(0), Lt(1)] = 0.7
    whole: Share = 0.08
    finish: Annotated[int, Ge(0)] = 150
    finish_rate: Annotated[float, Ge(0)] = 2e-4
    grounding: Annotated[float, Ge(0)] = 1.0
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    seed: Seed = 0
    device: str = "auto"
    threads: Annotated[int, Ge(0)] = 0
    checkpoint_every: Annotated[int, Ge(1)] = 50

    @property
    def all_steps(self) -> int:
        """Optimiser steps from the first to the last."""
        return self.steps + self.finish

    def problems(self) -> Iterator[str]:
        yield from faults(self)
        yield from device_problems(self.device)
