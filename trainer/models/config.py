"""The settings of the student: its size, its masking, and each place where it may follow the reference or common sense.

The defaults are sane behaviour. `REFERENCE_QUIRKS` holds the values that reproduce the reference implementation;
docs/method.md states for each what it changes and why the default differs.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import Annotated, Any, Literal, NamedTuple

from annotated_types import Ge, Gt, Le, Lt, MinLen

from pipeline.settings import faults

__all__ = [
    "ARCHITECTURES",
    "DEFAULT_ARCHITECTURE",
    "REFERENCE_QUIRKS",
    "MaskingConfig",
    "ModelConfig",
    "Neighbours",
    "PlainConfig",
    "RandomNumbers",
    "Share",
    "Size",
    "Sizes",
    "StudentConfig",
    "settings_class",
]

DEFAULT_ARCHITECTURE = "hierarchical"

MAX_NEIGHBOURS = 64  # the kNN kernels keep their candidates in registers
Size = Annotated[int, Ge(1)]
Sizes = Annotated[tuple[Size, ...], MinLen(1)]
Neighbours = Annotated[tuple[Annotated[int, Ge(1), Le(MAX_NEIGHBOURS)], ...], MinLen(1)]
Share = Annotated[float, Ge(0), Lt(1)]


class RandomNumbers(NamedTuple):
    """How many random numbers a training step needs of a sample.

    mask       to choose what stays visible
    drop_path  one a residual branch that may be skipped
    """

    mask: int
    drop_path: int


@dataclass(frozen=True, kw_only=True)
class StudentConfig(ABC):
    """[model]: what the settings of every student say; each architecture extends them by its own.

    architecture  which student: one of ARCHITECTURES
    """

    architecture: str = DEFAULT_ARCHITECTURE

    @property
    @abstractmethod
    def least_points(self) -> int:
        """Points that a cloud must have."""

    @property
    @abstractmethod
    def least_points_reason(self) -> str:
        """The settings that least_points follows from, for messages that continue with 'needs at least'."""

    @property
    @abstractmethod
    def random_numbers(self) -> RandomNumbers:
        """How many random numbers a training step needs of a sample."""

    @property
    def encoder_branches(self) -> int:
        """Residual branches of the encoder, which fine-tuning may skip too; 0 where no fine-tuning builds on it."""
        return 0

    @property
    def predicts_features(self) -> bool:
        """Whether the teachers' patch features are among the targets."""
        return True

    @abstractmethod
    def problems(self) -> Iterator[str]:
        """Every fault of the section, with names relative to it."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig(StudentConfig):
    """[model] of the architecture "hierarchical": levels run from the finest (0, groups of points) to the top.

    groups                tokens of each level, finest first; every level smaller than the one below
    neighbours            members of a token's group at each level, 1..64
    embed_first           widths of the first two layers of the finest level's token embedding
    encoder_dims          token width at each level, multiples of `heads`
    encoder_depths        transformer blocks at each level
    decoder_dims          token width of each decoder stage, top level first; the first equals encoder_dims[-1]
    decoder_depths        transformer blocks of each decoder stage
    decoder_up_blocks     residual blocks after each upward interpolation, one number a stage after the first
    heads                 attention heads of every block
    mlp_ratio             width of a block's hidden layer over its token width
    drop_path             largest chance that a training step skips a residual branch of a sample, 0..1 (1 excluded);
                          rises linearly from 0 over the encoder's blocks, and again over the decoder's
    targets               what is predicted: "both", "3d" (neighbourhoods of hidden tokens) or "2d" (teacher's features)
    layout                "packed": hidden tokens are dropped from the arrays, one host read a step;
                          "static": they stay and are masked out, shapes never change, nothing is read back; same result
    batch_norm_groups     groups whose values make the statistics of the token embeddings' batch norms while training:
                          "visible" ones, or "all" (reference), hidden ones included
    merge_input           input of the next level: "raw" encoder output (reference), or "normed"
    fps_skip_near_origin  never sample a centre with squared norm <= 1e-3, other than the first (reference)
    token0_leak           token 0 of the batch's first sample becomes visible below if any token is hidden (reference)
    eval_hide_unused      with nothing masked, still hide tokens that no group of the level above contains (reference)
    interpolation         squared distances behind the decoder's weights: "direct", or "expanded" (reference) as
                          |a|^2 + |b|^2 - 2ab
    initialisation        "mixed" (reference): truncated normal in the encoder, Xavier in the decoder's blocks, torch's
                          own elsewhere; "xavier": Xavier uniform with zero biases everywhere
    """

    architecture: Literal["hierarchical"] = "hierarchical"
    groups: Sizes = (512, 256, 64)
    neighbours: Neighbours = (16, 8, 8)
    embed_first: tuple[Size, Size] = (128, 256)
    encoder_dims: Sizes = (96, 192, 384)
    encoder_depths: Sizes = (5, 5, 5)
    decoder_dims: Sizes = (384, 192)
    decoder_depths: Sizes = (1, 1)
    decoder_up_blocks: tuple[Annotated[int, Ge(0)], ...] = (1,)
    heads: Size = 6
    mlp_ratio: Annotated[float, Gt(0)] = 4.0
    drop_path: Share = 0.1
    targets: Literal["both", "3d", "2d"] = "both"
    layout: Literal["packed", "static"] = "packed"
    batch_norm_groups: Literal["visible", "all"] = "visible"
    merge_input: Literal["raw", "normed"] = "raw"
    fps_skip_near_origin: bool = False
    token0_leak: bool = False
    eval_hide_unused: bool = False
    interpolation: Literal["direct", "expanded"] = "direct"
    initialisation: Literal["mixed", "xavier"] = "mixed"

    @classmethod
    def reference(cls, **sizes: Any) -> "ModelConfig":
        """Return the reference's behaviour in every quirk, with the given sizes (the paper's where not given)."""
        return cls(**{**REFERENCE_QUIRKS, **sizes})

    @property
    def levels(self) -> int:
        """Number of levels."""
        return len(self.groups)

    @property
    def target_level(self) -> int:
        """The level that the decoder ends at and that both losses are computed on."""
        return self.levels - len(self.decoder_dims)

    @property
    def least_points(self) -> int:
        """Points that a cloud must have: one for each of the finest groups, and a group's members."""
        return max((*self.groups[:1], *self.neighbours[:1]), default=1)

    @property
    def least_points_reason(self) -> str:
        """The settings that least_points follows from."""
        return f"model.groups = {self.groups} with model.neighbours = {self.neighbours}"

    @property
    def random_numbers(self) -> RandomNumbers:
        """One number a top-level token, and one a residual branch."""
        return RandomNumbers(self.groups[-1], self.residual_branches)

    @property
    def predicts_features(self) -> bool:
        return self.targets != "3d"

    @property
    def residual_branches(self) -> int:
        """Residual branches that drop path may skip: two a transformer block, encoder first."""
        return 2 * (sum(self.encoder_depths) + sum(self.decoder_depths))

    @property
    def encoder_branches(self) -> int:
        """Two a transformer block of the encoder."""
        return 2 * sum(self.encoder_depths)

    def problems(self) -> Iterator[str]:
        yield from faults(self)
        for name in ("neighbours", "encoder_dims", "encoder_depths"):
            if len(getattr(self, name)) != self.levels:
                yield (
                    f"{name} = {getattr(self, name)} must have one value per level; "
                    f"groups = {self.groups} has {len(self.groups)}"
                )
        yield from self._group_problems()
        yield from self._width_problems()

    def _group_problems(self) -> Iterator[str]:
        if self.levels < 2:
            yield f"groups = {self.groups} has fewer than 2 levels"
        if any(upper >= lower for lower, upper in pairwise(self.groups)):
            yield f"groups = {self.groups} does not decrease from level to level"
        for level, k in enumerate(self.neighbours):
            if 0 < level < self.levels and k > self.groups[level - 1]:
                yield f"neighbours[{level}] = {k} is more than groups[{level - 1}] = {self.groups[level - 1]}"
        if self.groups and len(self.decoder_dims) > 1 and self.groups[-1] < 3:
            yield f"groups[-1] = {self.groups[-1]} is less than the 3 neighbours the decoder interpolates from"

    def _width_problems(self) -> Iterator[str]:
        stages = len(self.decoder_dims)
        if not 1 <= stages < max(self.levels, 2):
            yield f"decoder_dims = {self.decoder_dims} has {stages} stages; groups allow 1..{self.levels - 1}"
        if len(self.decoder_depths) != stages:
            yield (
                f"decoder_depths = {self.decoder_depths} must have one value per stage; "
                f"decoder_dims = {self.decoder_dims} has {stages}"
            )
        if len(self.decoder_up_blocks) != stages - 1:
            yield f"decoder_up_blocks = {self.decoder_up_blocks} must have {stages - 1} values, decoder_dims' less one"
        if self.encoder_dims and self.decoder_dims and self.decoder_dims[0] != self.encoder_dims[-1]:
            yield f"decoder_dims[0] = {self.decoder_dims[0]} is not encoder_dims[-1] = {self.encoder_dims[-1]}"
        if self.heads < 1:
            return
        for name in ("encoder_dims", "decoder_dims"):
            for width in getattr(self, name):
                if width % self.heads:
                    yield f"{name} has {width}, which is not a multiple of heads = {self.heads}"


@dataclass(frozen=True, kw_only=True)
class PlainConfig(StudentConfig):
    """[model] of the architecture "plain": one level of groups and a standard transformer over their tokens.

    The defaults are Point-MAE's sizes. With the settings from embed_width on, the encoders of its relatives run too,
    whose checkpoints `i2p checkpoint import` reads.

    groups              tokens of a cloud
    neighbours          points of a token's group, 1..64
    embed_first         widths of the first two layers of the token embedding; twice the second is the third's
    width               of a token, a multiple of `heads` and `decoder_heads`
    depth               transformer blocks of the encoder
    heads               attention heads of each
    decoder_depth       transformer blocks of the decoder, as wide as the encoder's
    decoder_heads       attention heads of each
    mlp_ratio           width of a block's hidden layer over `width`
    drop_path           largest chance that a training step skips a residual branch of a sample, 0..1 (1 excluded);
                        rises linearly from 0 over the encoder's blocks, and again over the decoder's
    targets             what is predicted: "3d" (neighbourhoods of hidden tokens), "2d" (teacher's features at the
                        members of visible ones) or "both"
    distance            of the 3D loss: "squared" (the method's), or its "root", halved
    fps_skip_near_origin  never sample a centre with squared norm <= 1e-3, other than the first (reference)
    initialisation      "mixed" (reference): truncated normal in the encoder, Xavier in the decoder's blocks, torch's
                        own elsewhere; "xavier": Xavier uniform with zero biases everywhere
    embed_width         of the token embedding, where a linear layer brings it to `width`; 0: `width`, and no such layer
    position            what a centre's position is embedded from: its "coordinates", or "sines" and cosines of them,
                        which needs a multiple of 6 as `width`
    front               tokens of its own in front of a cloud's: "none", a "class" token, or "three": class, image, text
    streams             "one": all tokens attend to all; "two": those in front look at the cloud's, which never see them
    adapters            blocks, from 0 on, that are followed by a layer over the nearest tokens (Point-FEMAE)
    adapter_neighbours  tokens that it looks at, the token itself included
    adapter_width       of its hidden layer; 0: `width`
    """

    architecture: Literal["plain"] = "plain"
    groups: Size = 64
    neighbours: Annotated[int, Ge(1), Le(MAX_NEIGHBOURS)] = 32
    embed_first: tuple[Size, Size] = (128, 256)
    width: Size = 384
    depth: Size = 12
    heads: Size = 6
    decoder_depth: Size = 4
    decoder_heads: Size = 6
    mlp_ratio: Annotated[float, Gt(0)] = 4.0
    drop_path: Share = 0.1
    targets: Literal["both", "3d", "2d"] = "both"
    distance: Literal["squared", "root"] = "squared"
    fps_skip_near_origin: bool = False
    initialisation: Literal["mixed", "xavier"] = "mixed"
    embed_width: Annotated[int, Ge(0)] = 0
    position: Literal["coordinates", "sines"] = "coordinates"
    front: Literal["none", "class", "three"] = "none"
    streams: Literal["one", "two"] = "one"
    adapters: tuple[Annotated[int, Ge(0)], ...] = ()
    adapter_neighbours: Annotated[int, Ge(1), Le(MAX_NEIGHBOURS)] = 20
    adapter_width: Annotated[int, Ge(0)] = 0

    @property
    def least_points(self) -> int:
        """Points that a cloud must have: one for each group, and a group's members."""
        return max(self.groups, self.neighbours)

    @property
    def least_points_reason(self) -> str:
        """The settings that least_points follows from."""
        return f"model.groups = {self.groups} with model.neighbours = {self.neighbours}"

    @property
    def random_numbers(self) -> RandomNumbers:
        """One number a token, and one a residual branch: two a transformer block, encoder first."""
        return RandomNumbers(self.groups, self.encoder_branches + 2 * self.decoder_depth)

    @property
    def predicts_features(self) -> bool:
        """False with targets = "3d"."""
        return self.targets != "3d"

    @property
    def encoder_branches(self) -> int:
        """Two a transformer block of the encoder."""
        return 2 * self.depth

    def problems(self) -> Iterator[str]:
        yield from faults(self)
        for name in ("heads", "decoder_heads"):
            heads = getattr(self, name)
            if heads >= 1 and self.width % heads:
                yield f"width = {self.width} is not a multiple of {name} = {heads}"
        if self.groups < 2:
            yield f"groups = {self.groups} is fewer than 2, one to see and one to hide"
        if self.position == "sines" and self.width % 6:
            yield f'width = {self.width} is not a multiple of 6, which position = "sines" needs'
        if self.streams == "two" and self.front == "none":
            yield 'streams = "two" with front = "none", which has no tokens for the second'
        if list(self.adapters) != sorted(set(self.adapters)) or any(i >= self.depth for i in self.adapters):
            yield f"adapters = {self.adapters} are not blocks in ascending order, 0..{self.depth - 1}"
        if self.adapters and self.streams == "two":
            yield 'adapters with streams = "two"; no encoder has both'


@dataclass(frozen=True, kw_only=True)
class MaskingConfig:
    """[masking]: the top-level tokens that the student sees; their members are visible on the levels below.

    mode         "saliency": drawn without replacement, weighted by the teacher's attention; "random": all alike;
                 "block": the nearest to a token drawn at random are hidden
    ratio        share of the top level's tokens that is hidden, 0..1 (1 excluded), rounded down to whole tokens
    saliency     input of the weights' softmax: "raw" attention (reference) or "standardised" within each sample
    temperature  divides it first; small: the most salient are nearly sure to stay visible; large: like random
    per_shape    masks of each shape in a step. A shape is read, grouped and looked up in the teacher's maps once, and
                 trained on once a mask: trainer.batch_size shapes make per_shape times as many samples
    """

    mode: Literal["saliency", "random", "block"] = "saliency"
    ratio: Share = 0.8
    saliency: Literal["raw", "standardised"] = "raw"
    temperature: Annotated[float, Gt(0)] = 1.0
    per_shape: Annotated[int, Ge(1)] = 1

    def visible(self, groups: int) -> int:
        """Return how many of the top level's `groups` tokens stay visible; at least 1, since ratio < 1."""
        return groups - int(self.ratio * groups)

    def problems(self) -> Iterator[str]:
        yield from faults(self)


REFERENCE_QUIRKS: Mapping[str, Any] = MappingProxyType(
    {
        "batch_norm_groups": "all",
        "merge_input": "raw",
        "fps_skip_near_origin": True,
        "token0_leak": True,
        "eval_hide_unused": True,
        "interpolation": "expanded",
        "initialisation": "mixed",
    }
)
"""The settings of [model] that the reference answers in its own way, with its answers."""


ARCHITECTURES: dict[str, type[StudentConfig]] = {DEFAULT_ARCHITECTURE: ModelConfig, "plain": PlainConfig}
"""model.architecture -> the class of its settings; the student's own is in trainer.models.build.STUDENTS."""


def settings_class(settings: Mapping[str, Any]) -> type[StudentConfig]:
    """The class of a section [model] by its `architecture`, which old files and checkpoints do not have.

    Raises ValueError for an unknown architecture.
    """
    name = settings.get("architecture", DEFAULT_ARCHITECTURE)
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise ValueError(f"architecture = {name!r} is none of {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]
