"""The teacher: a frozen ViT of open_clip or timm that turns depth images into patch features and saliency.

docs/teacher.md lists the weights, how to get them and how to name them. There are no fallbacks: weights that are
missing, of another shape or of unknown activation raise errors that name the setting.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.config import ProjectionConfig, TeacherConfig
from pipeline.errors import TeacherError
from pipeline.teacher import attention, timm_forward
from pipeline.teacher.attention import tower_problem
from pipeline.teacher.filling import DTYPES, fill_tower, seeded, weights_hash
from pipeline.teacher.timm_tower import PREFIX, describe_timm, load_timm, timm_normalisations
from pipeline.teacher.weights import TowerWeights, download_weights, openai_architecture, read_weights

__all__ = [
    "Teacher",
    "describe_architecture",
    "embedded_weights",
    "load_teacher",
    "resolve_device",
    "size_conflicts",
    "teacher_conflicts",
]

logger = logging.getLogger(__name__)

ARCHITECTURES = Path(__file__).parents[1] / "architectures"
EMBEDDED = Path(__file__).parents[1] / "embedded"  # weights shipped with the package, one file per architecture
CPU_BATCH = 3  # one shape's views: larger batches are slower on a CPU (measured, docs/teacher.md)
GPU_BATCH = 96


class Teacher:
    """A loaded vision tower. Made by `load_teacher`; never pickled: each process loads its own.

    image_side, patch_side  sizes of the images and patches it takes, S and P
    tokens, channels        patch tokens per image and channels of a feature, T and C
    batch_size              images in one forward pass
    device, precision       where it runs, and in which arithmetic
    normalisations          values of projection.normalisation that its images may have; (): any
    """

    # Any: torch types every attribute of a module as a tensor or a module
    def __init__(
        self,
        tower: Any,
        config: TeacherConfig,
        device: torch.device,
        facts: Mapping[str, Any],
        normalisations: tuple[str, ...] = (),
    ) -> None:
        self._tower = tower
        # Two modules of the same functions: one for each library's towers.
        self._pass: Any = timm_forward if isinstance(tower, timm_forward.TimmTower) else attention
        self.normalisations = normalisations
        self._facts = dict(facts)
        self.device = device
        self.precision = config.precision
        self.batch_size = config.batch_size or (CPU_BATCH if device.type == "cpu" else GPU_BATCH)
        self.image_side: int = self._tower.image_size[0]
        self.patch_side: int = self._tower.patch_size[0]
        self.tokens: int = (self.image_side // self.patch_side) ** 2
        self.channels: int = self._tower.output_dim

    def identity(self) -> dict[str, Any]:
        """Return what determines this teacher's output, as JSON values: a part of a cache's recipe.

        architecture, its sizes, which GELU, precision, sha256 of the weights (names, shapes and float32 values,
        whatever file they came in), and for the random teacher its seed. Device and batch size are not in it.
        """
        return json.loads(json.dumps(self._facts))

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Encode images to patch features and saliency.

        images  [M, 3, S, S] float32, normalised; any device.
        ->      features [M, T, C] float32, patch tokens row by row, after the last norm and the projection;
                saliency [M, T] float32, attention of the class token in the last block, mean over heads, at least 0.
                Both on the teacher's device, without gradient.

        Raises TypeError for another dtype, ValueError for another shape. M may be 0.
        """
        features = torch.empty(len(images), self.tokens, self.channels, device=self.device)
        saliency = torch.empty(len(images), self.tokens, device=self.device)
        for part, batch in self._batches("encode", images):
            features[part], saliency[part] = self._pass.patch_features(self._tower, batch)
        return features, saliency

    @property
    def class_problem(self) -> str | None:
        """The reason why this teacher has no usable class token, or None."""
        return self._pass.class_problem(self._tower)

    def encode_views(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode images as `encode` does, to the bit, and return each image's class token of the same forward passes.

        images  as of `encode`.
        ->      features [M, T, C], saliency [M, T], and the class token [M, C] float32, where the features are: after
                the last norm and the projection, not normalised. For OpenAI's towers that is CLIP's image feature; for
                timm's towers that pool by attention, the pool's output stands in.

        Raises as `encode`, and TeacherError where `class_problem` is not empty.
        """
        if self.class_problem is not None:
            raise TeacherError(f"this teacher has no usable class token: {self.class_problem}")
        features = torch.empty(len(images), self.tokens, self.channels, device=self.device)
        saliency = torch.empty(len(images), self.tokens, device=self.device)
        whole = torch.empty(len(images), self.channels, device=self.device)
        for part, batch in self._batches("encode_views", images):
            features[part], saliency[part], whole[part] = self._pass.view_features(self._tower, batch)
        return features, saliency, whole

    def encode_class(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Encode images to class features and class attention.

        images  as of `encode`.
        ->      feature [M, C] float32, the class token's, after the last norm and the projection;
                attention [M, T + 1] float32, the class token's attention in the last block to every token, itself
                first, mean over heads. `encode`'s saliency is this without its first column.

        Raises as `encode`.
        """
        feature = torch.empty(len(images), self.channels, device=self.device)
        attention = torch.empty(len(images), self.tokens + 1, device=self.device)
        for part, batch in self._batches("encode_class", images):
            feature[part], attention[part] = self._pass.class_features(self._tower, batch)
        return feature, attention

    def encode_tokens(self, images: Tensor) -> Tensor:
        """Encode images as in `encode`, without attention -> [M, T + 1, C], class token first."""
        features = torch.empty(len(images), self.tokens + 1, self.channels, device=self.device)
        for part, batch in self._batches("encode_tokens", images):
            features[part] = self._pass.token_features(self._tower, batch)
        return features

    def _batches(self, function: str, images: Tensor) -> Iterator[tuple[slice, Tensor]]:
        S = self.image_side
        if images.dtype != torch.float32:
            raise TypeError(f"{function}: images are {images.dtype}; expected torch.float32")
        if images.ndim != 4 or images.shape[1:] != (3, S, S):
            raise ValueError(f"{function}: images have shape {tuple(images.shape)}; expected [M, 3, {S}, {S}]")
        for start in range(0, len(images), self.batch_size):
            part = slice(start, start + self.batch_size)
            yield part, images[part].to(self.device, DTYPES[self.precision])

    def __reduce__(self) -> Any:
        raise TypeError("a Teacher cannot be pickled; send its TeacherConfig and load the teacher in the worker")


def load_teacher(config: TeacherConfig, device: torch.device | None = None) -> Teacher:
    """Build the tower that `config` names, on `device` (default: `config.device`), frozen, in evaluation mode.

    Raises TeacherError for an architecture that does not exist or cannot be a teacher, and for weights that cannot be
    obtained, do not fit, or do not identify the GELU they were trained with.
    """
    device = resolve_device(config.device) if device is None else device
    if config.architecture.startswith(PREFIX):
        made, facts, normalisations = load_timm(config, device)
        if config.random:
            _warn_of_random(config)
        return Teacher(made, config, device, facts, normalisations)
    weights, tag = _weights(config)
    if config.architecture == "openai":
        assert weights is not None  # TeacherConfig.problems
        architecture = openai_architecture(weights)
    else:
        architecture = describe_architecture(config.architecture)
    quickgelu = _quickgelu(config, architecture, weights, tag)
    tower = _build_tower(config, architecture, quickgelu)
    if weights is not None:
        fill_tower(tower, weights, config.architecture)
    named = Path(config.architecture)
    facts = {
        "architecture": named.stem if named.suffix == ".json" else config.architecture,  # never a path of this machine
        "sizes": {"embed_dim": architecture["embed_dim"], "vision_cfg": architecture["vision_cfg"]},
        "quickgelu": quickgelu,
        "precision": config.precision,
        "weights_sha256": weights_hash(tower),
    }
    if config.random:
        facts["random_seed"] = config.seed
        _warn_of_random(config)
    return Teacher(_to_precision(tower, config.precision).to(device), config, device, facts)


def _warn_of_random(config: TeacherConfig) -> None:
    logger.warning(
        "the teacher is RANDOM (%s, seed %d): it is untrained, and its features serve only to test the pipeline",
        config.architecture,
        config.seed,
    )


def resolve_device(name: str) -> torch.device:
    """Return the device that a config names. Raises TeacherError for a GPU that does not exist."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise TeacherError(
            f"teacher.device = {name}: torch sees {torch.cuda.device_count()} CUDA devices here; set auto or cpu"
        )
    return device


def teacher_conflicts(config: TeacherConfig, projection: ProjectionConfig) -> Iterator[str]:
    """Yield faults between [teacher] and [projection], with full names. Those only weights reveal are left to loading.

    Raises TeacherError for an unknown architecture.
    """
    if config.architecture == "openai":
        return
    if config.architecture.startswith(PREFIX):
        image_side, patch_side = describe_timm(config)
        yield from size_conflicts(config.architecture, image_side, patch_side, projection, timm_normalisations(config))
        return
    vision = describe_architecture(config.architecture)["vision_cfg"]
    yield from size_conflicts(
        config.architecture, vision.get("image_size", 224), vision.get("patch_size", 16), projection
    )


def size_conflicts(
    architecture: str,
    image_side: Any,
    patch_side: Any,
    projection: ProjectionConfig,
    normalisations: tuple[str, ...] = (),
) -> Iterator[str]:
    """Yield one line per size in which teacher and projection differ, and one for a wrong normalisation.

    normalisations  values of projection.normalisation that the teacher accepts; (): any.
    """
    for name, wanted in (("image_side", image_side), ("patch_side", patch_side)):
        given = getattr(projection, name)
        if given != wanted:
            yield f"projection.{name} = {given} is not the {wanted} that teacher.architecture = {architecture} takes"
    if normalisations and projection.normalisation not in normalisations:
        yield (
            f"projection.normalisation = {projection.normalisation} is not the {' or '.join(normalisations)} that "
            f"teacher.architecture = {architecture} was trained with"
        )


def _weights(config: TeacherConfig) -> tuple[TowerWeights | None, Mapping[str, Any]]:
    """Return the weights, None for the random teacher, and open_clip's description of their tag ({} for a file)."""
    if config.weights:
        return read_weights(config.weights), {}
    if config.random:
        return None, {}
    if config.pretrained == "embedded":
        return read_weights(embedded_weights(config.architecture)), {}
    from open_clip import get_pretrained_cfg, list_pretrained_tags_by_model

    entry = get_pretrained_cfg(config.architecture, config.pretrained)
    if not entry:
        describe_architecture(config.architecture)  # an unknown architecture is the better message
        tags = ", ".join(list_pretrained_tags_by_model(config.architecture)) or "none"
        raise TeacherError(
            f"teacher.pretrained = {config.pretrained!r} is not a tag of {config.architecture} in open_clip; the tags "
            f"are: {tags}.\n"
            '  Set teacher.weights to a local file, or teacher.pretrained = "random" or "embedded".'
        )
    return read_weights(download_weights(config.architecture, config.pretrained, entry)), entry


def embedded_weights(architecture: str) -> Path:
    """Return the file of the package's own weights of an architecture."""
    path = EMBEDDED / f"{architecture}.safetensors"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in EMBEDDED.glob("*.safetensors"))) or "none"
        raise TeacherError(
            f'teacher.pretrained = "embedded": this package has no weights of {architecture}, only of: {known}.\n'
            "  Choose one of these as teacher.architecture, or other weights as teacher.pretrained."
        )
    return path


@cache
def _register_architectures() -> None:
    from open_clip import add_model_config

    add_model_config(ARCHITECTURES)


def describe_architecture(name: str) -> dict[str, Any]:
    """Return open_clip's description of a model by name, or the JSON file at a path that ends in .json."""
    from open_clip import get_model_config, list_models

    _register_architectures()
    if name.endswith(".json"):
        try:
            config = json.loads(Path(name).expanduser().read_text())
            config["embed_dim"], config["vision_cfg"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TeacherError(
                f"teacher.architecture = {name!r} is not a model description ({error!r}).\n"
                "  Expected an object with embed_dim and vision_cfg, like pipeline/architectures/i2p-vit-tiny-16.json."
            ) from error
        return config
    if name not in list_models():
        similar = _similar(name, list_models())
        raise TeacherError(
            f"teacher.architecture = {name!r} is not a model of open_clip or of this package{similar}.\n"
            "  open_clip.list_models() lists its own; this package adds "
            + ", ".join(sorted(path.stem for path in ARCHITECTURES.glob("*.json")))
            + "."
        )
    return get_model_config(name)


def _similar(name: str, names: list[str]) -> str:
    from difflib import get_close_matches

    close = get_close_matches(name, names, n=3)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def _quickgelu(
    config: TeacherConfig, architecture: Mapping[str, Any], weights: TowerWeights | None, tag: Mapping[str, Any]
) -> bool:
    """Decide which GELU: as set; else by the tag, the file's marks or the architecture; else an error."""
    if config.quickgelu != "auto":
        return config.quickgelu == "on"
    if config.architecture == "openai" or (weights is not None and weights.openai):
        return True
    known = bool(architecture.get("quick_gelu", False))
    if tag:
        return known or bool(tag.get("quick_gelu", False))
    if weights is not None and not known and _trained_both_ways(config.architecture):
        raise TeacherError(
            f"{weights.source}: weights of {config.architecture} exist with QuickGELU (OpenAI's and some others) and "
            "with GELU, and this file does not tell.\n"
            "  Set teacher.quickgelu = on (OpenAI's weights) or off."
        )
    return known


def _trained_both_ways(architecture: str) -> bool:
    from open_clip import get_pretrained_cfg, list_pretrained_tags_by_model

    tags = list_pretrained_tags_by_model(architecture)
    return any(get_pretrained_cfg(architecture, tag).get("quick_gelu") for tag in tags)


def _build_tower(config: TeacherConfig, architecture: Mapping[str, Any], quickgelu: bool) -> nn.Module:
    """Build the vision tower alone, filled from `config.seed`, in float32 with norms that suit the precision."""
    # open_clip's public constructors make the text tower too: half the time and memory of a worker's start.
    from open_clip.model import _build_vision_tower

    vision = dict(architecture["vision_cfg"])
    if vision.get("timm_model_name") or isinstance(vision.get("layers"), list | tuple):
        kind = "a timm model" if vision.get("timm_model_name") else "a ResNet"
        raise TeacherError(_unsuitable(config.architecture, f"its vision tower is {kind}, not a VisionTransformer"))
    cast = None if config.precision == "float32" else DTYPES[config.precision]
    with seeded(config.seed):
        tower = _build_vision_tower(architecture["embed_dim"], vision, quickgelu, cast)
    problem = tower_problem(tower)
    if problem:
        raise TeacherError(_unsuitable(config.architecture, problem))
    return tower.eval().requires_grad_(False)


def _unsuitable(architecture: str, problem: str) -> str:
    return (
        f"teacher.architecture = {architecture} cannot be a teacher: {problem}.\n"
        "  Saliency is the class token's attention, so use a plain ViT with a class token, such as ViT-B-16."
    )


def _to_precision(tower: nn.Module, precision: str) -> nn.Module:
    """Convert matrix weights to the precision, norms stay float32: what open_clip calls bf16 and fp16."""
    if precision == "float32":
        return tower
    from open_clip.model import convert_weights_to_lp
    from open_clip.transformer import LayerScale

    convert_weights_to_lp(tower, dtype=DTYPES[precision])
    for module in tower.modules():
        if isinstance(module, LayerScale):
            module.gamma.data = module.gamma.data.to(DTYPES[precision])
    return tower
