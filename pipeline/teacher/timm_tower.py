"""Vision transformers of timm as teachers: supported architectures, weights, and image sides.

Key names and layouts are timm's business: its own filter for files turns those of DINOv2, DINOv3, OpenAI and open_clip
into its names. Everything about a file that does not fit is refused here by name; only position embeddings are resized,
by timm's `set_input_size`, and a teacher's identity says so.
"""

import logging
from collections.abc import Mapping
from functools import cache
from math import isqrt
from typing import Any

import torch
from torch import Tensor

from pipeline.config import TeacherConfig
from pipeline.errors import TeacherError
from pipeline.teacher.filling import DTYPES, fill_tower, seeded, weights_hash
from pipeline.teacher.timm_forward import TimmTower, token_features
from pipeline.teacher.weights import TowerWeights, download_weights, read_tensors
from pipeline.views import MOMENTS

__all__ = ["PREFIX", "TimmFacts", "describe_timm", "load_timm", "timm_normalisations"]

logger = logging.getLogger(__name__)

PREFIX = "timm:"
_MODULES = ("vision_transformer", "eva")  # of timm.models
_OTHER_GRIDS = ("flexi", "radio")  # resized by rules of their own, of which no identity here speaks
_POSITIONS = ("pos_embed", "visual.trunk.pos_embed", "visual.pos_embed", "visual.positional_embedding")
_METHOD = "timm.layers.resample_abs_pos_embed, bicubic, antialias"
_AGREES = 1e-4  # relative; float32 sums in another order: measured below 2e-6 on eight towers

TimmFacts = tuple[TimmTower, dict[str, Any], tuple[str, ...]]
"""The tower, its identity and the values of projection.normalisation it may be shown (none: any)."""


def describe_timm(config: TeacherConfig) -> tuple[int, int]:
    """Return the sides of image and patch of the tower that `config` describes, without building it.

    Raises TeacherError for an architecture that timm does not know or that cannot teach, and a side that does not fit.
    """
    own, patch = _sides(_name(config))
    side = config.image_side or own
    if side % patch:
        raise TeacherError(
            f"teacher.image_side = {side} is not a multiple of {patch}, the patch side of {config.architecture}"
        )
    return side, patch


def timm_normalisations(config: TeacherConfig) -> tuple[str, ...]:
    """List the values of projection.normalisation that suit this tower's weights; () for the random teacher.

    They are those of the tag that `pretrained` names. A local file names no tag: then those of every tag of the
    architecture.

    Raises TeacherError for a tag that timm does not list or whose images no setting gives.
    """
    if config.random:
        return ()
    name = _name(config)
    _sides(name)
    entries = _entries(name) if config.weights else {config.pretrained: _entry(config)}
    known = {(entry.mean, entry.std) for entry in entries.values()}
    found = tuple(word for word, moments in MOMENTS.items() if moments in known)
    if not found and entries:
        mean, std = next(iter(known))
        raise TeacherError(
            f"{config.architecture}: its images are normalised with mean {mean} and standard deviation {std}; "
            f"projection.normalisation supports only {', '.join(MOMENTS)}"
        )
    return found


def _unnamed_moments(config: TeacherConfig) -> list[str]:
    """List normalisations of other tags, for a local file, that no projection.normalisation provides."""
    entries = _entries(_name(config)).values() if config.weights else ()
    unnamed = {(entry.mean, entry.std) for entry in entries} - set(MOMENTS.values())
    return [f"mean {mean} and standard deviation {std}, which no setting supports," for mean, std in sorted(unnamed)]


def load_timm(config: TeacherConfig, device: torch.device) -> TimmFacts:
    """Build the tower that `config` names and load its weights, on `device`, frozen, in evaluation mode.

    Raises TeacherError as `describe_timm` and `timm_normalisations` do, and for weights that cannot be had or do not
    fit.
    """
    name = _name(config)
    side, patch = describe_timm(config)
    normalisations = timm_normalisations(config)
    with seeded(config.seed):
        net = _make(name)
    net.eval().requires_grad_(False)
    facts: dict[str, Any] = {"architecture": config.architecture}
    if config.random:
        net.set_input_size((side, side))
        resized = None
    else:
        resized = _fill(net, name, _weights(config), config.architecture)
        known = [*normalisations, *_unnamed_moments(config)]
        if len(known) > 1:
            logger.warning(
                "%s: published weights of this architecture were trained with projection.normalisation = %s; the file "
                "does not say with which",
                config.weights,
                " or ".join(known),
            )
    sha256 = weights_hash(net)  # of the file's tensors, so before any of them is resized
    net.set_input_size((side, side))
    net.requires_grad_(False)
    facts["sizes"] = {
        "image_side": side,
        "patch_side": patch,
        "width": net.embed_dim,
        "blocks": len(net.blocks),
        "heads": net.blocks[-1].attn.num_heads,
        "registers": net.num_prefix_tokens - int(net.cls_token is not None),
    }
    if resized is not None and resized != side // patch:
        facts["positions"] = {"from": resized, "to": side // patch, "by": _METHOD}
    facts["saliency"] = "class token" if net.attn_pool is None else "attention pool"
    facts["precision"] = config.precision
    facts["weights_sha256"] = sha256
    if config.random:
        facts["random_seed"] = config.seed
    tower = TimmTower(net)
    _compare(tower, config.architecture)
    _to_precision(net, config.precision)
    net.to(device)
    return tower, facts, normalisations


def _name(config: TeacherConfig) -> str:
    return config.architecture.removeprefix(PREFIX)


@cache
def _sides(name: str) -> tuple[int, int]:
    """Return image and patch side of an architecture that can teach; else raise TeacherError."""
    with torch.device("meta"):
        net = _make(name)
    return net.patch_embed.img_size[0], net.patch_embed.patch_size[0]


def _make(name: str) -> Any:
    """Build the timm model without classifier, at its own image side, on torch's default device; else TeacherError."""
    from difflib import get_close_matches

    import timm

    whole = f"teacher.architecture = {PREFIX}{name}"
    known = [each for module in _MODULES for each in timm.list_models(module=module)]
    if name not in known:
        bare, _, tag = name.partition(".")
        if bare in known:
            raise TeacherError(
                f'{whole} contains a tag; set teacher.architecture = "{PREFIX}{bare}" and teacher.pretrained = "{tag}"'
            )
        if timm.is_model(name):
            raise TeacherError(
                f"{whole} cannot be a teacher: it is not one of timm's plain vision transformers (ViT, EVA)"
            )
        close = get_close_matches(name, known, n=3)
        hint = f"; did you mean {' or '.join(PREFIX + each for each in close)}?" if close else ""
        raise TeacherError(
            f"{whole} is not a vision transformer of timm {timm.__version__}{hint}\n"
            "  timm.list_models(module='vision_transformer') and (module='eva') list them."
        )
    if any(word in name for word in _OTHER_GRIDS):
        raise TeacherError(f"{whole} cannot be a teacher: timm resizes its position embedding by other rules")
    # timm's DINOv3 says: "Pass global_pool='token' to use CLS-token pooling (matches upstream DINOv3)".
    pooling: dict[str, Any] = {"global_pool": "token"} if "_dinov3" in name else {}
    net = timm.create_model(name, pretrained=False, num_classes=0, **pooling)
    module: Any
    for module in net.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = True  # timm asks the environment (TIMM_FUSED_ATTN); the other way rounds otherwise
    problem = _problem(net)
    if problem:
        raise TeacherError(f"{whole} cannot be a teacher: {problem}")
    return net


def _problem(net: Any) -> str | None:
    """Return why this timm model cannot be a teacher, or None if it can."""
    from timm.layers import Attention, AttentionPoolLatent, AttentionRope, PatchEmbed
    from timm.models.eva import Eva, EvaAttention, EvaBlock
    from timm.models.vision_transformer import Block, VisionTransformer

    if type(net) not in (VisionTransformer, Eva):
        return f"its class is {type(net).__name__}, not VisionTransformer or Eva"
    embed = net.patch_embed
    if type(embed) is not PatchEmbed or embed.dynamic_img_pad:
        return f"its patch embedding is {type(embed).__name__}"
    if embed.img_size[0] != embed.img_size[1] or embed.patch_size[0] != embed.patch_size[1]:
        return f"its images {embed.img_size} or patches {embed.patch_size} are not square"
    if net.attn_pool is not None:
        pool = net.attn_pool
        if type(pool) is not AttentionPoolLatent or pool.latent_len != 1 or pool.pos_embed is not None:
            return f"it pools through {type(pool).__name__} with more than one query or positions of its own"
        if net.num_prefix_tokens and type(net) is VisionTransformer and not net.pool_include_prefix:
            return "its pool omits the tokens before the patches"
    elif net.cls_token is None:
        return "it has neither a class token nor an attention pool, so it has no saliency"
    if not isinstance(net.fc_norm, torch.nn.Identity):
        return "its last norm follows the pooling, so its patch tokens are not normalised"
    for block in net.blocks:
        if type(block) not in (Block, EvaBlock):
            return f"its blocks are {type(block).__name__}"
        if type(block.attn) not in (Attention, EvaAttention, AttentionRope):
            return f"its attention is {type(block.attn).__name__}"
        if getattr(block.attn, "num_kv_groups", 1) != 1:
            return "several heads share their keys"
    return None


def _entries(name: str) -> Mapping[str, Any]:
    """Return timm's descriptions of an architecture's weights by tag."""
    from timm.models import get_pretrained_cfg, list_models

    tags = [each.partition(".")[2] for each in list_models(f"{name}.*", include_tags=True)]
    return {tag: get_pretrained_cfg(f"{name}.{tag}") for tag in tags if tag}


def _entry(config: TeacherConfig) -> Any:
    entries = _entries(_name(config))
    if config.pretrained not in entries:
        raise TeacherError(
            f"teacher.pretrained = {config.pretrained!r} is not a tag of {config.architecture} in timm; the tags are: "
            f"{', '.join(entries) or 'none'}.\n"
            '  Set teacher.weights to a local file, or teacher.pretrained = "random".'
        )
    return entries[config.pretrained]


def _weights(config: TeacherConfig) -> TowerWeights:
    if config.weights:
        return read_tensors(config.weights)
    entry = _entry(config)
    if not entry.hf_hub_id:
        raise TeacherError(
            f"teacher.pretrained = {config.pretrained}: timm has no copy of these weights on the hub"
            + (f".\n  Download {entry.url} and set teacher.weights to the file." if entry.url else "")
        )
    hub = f"{entry.hf_hub_id}/{entry.hf_hub_filename or 'model.safetensors'}"
    return read_tensors(download_weights(config.architecture, config.pretrained, {"hf_hub": hub}))


def _fill(net: Any, name: str, weights: TowerWeights, architecture: str) -> int | None:
    """Load a file at the grid it was trained on -> patches along a side there; None if no position is learnt."""
    from timm.models import eva, vision_transformer

    state = dict(weights.tensors)
    patch = net.patch_embed.patch_size[0]
    for key, tensor in state.items():
        if tensor.ndim == 4 and tensor.shape[1] == 3 and tuple(tensor.shape[2:]) != (patch, patch):
            raise TeacherError(  # timm's filter would resize it without a word
                f"{weights.source}: {key} has patches of {' x '.join(map(str, tensor.shape[2:]))} pixels; "
                f"{architecture} has {patch} x {patch}"
            )
    grid = _grid(net, state, weights.source, architecture)
    if grid is not None:
        net.set_input_size((grid * patch, grid * patch))
    module = vision_transformer if type(net) is vision_transformer.VisionTransformer else eva
    try:
        named = module.checkpoint_filter_fn(state, net)
    except (KeyError, ValueError, RuntimeError, AttributeError, IndexError, AssertionError) as error:
        raise TeacherError(
            f"{weights.source}: timm cannot load its {len(weights.tensors)} tensors into {architecture} "
            f"({type(error).__name__}: {error})"
        ) from error
    tower = {key: value for key, value in named.items() if not key.startswith("head.")}  # the classifier
    fill_tower(net, TowerWeights(tower, weights.openai, weights.source), architecture)
    return grid


def _grid(net: Any, state: Mapping[str, Tensor], source: str, architecture: str) -> int | None:
    """Return the patches along a side for which a file's positions were learnt; None for a tower without any."""
    key = next((each for each in _POSITIONS if each in state), None)
    if net.pos_embed is None or key is None:
        return None  # a tower that should have them reports them missing
    rows = state[key].shape[-2]
    before = 0 if net.no_embed_class else net.num_prefix_tokens
    if "register_tokens" in state:  # DINOv2's own file: a place for the class token and none for registers
        before = 1
    grid = isqrt(max(rows - before, 0))
    if not grid or grid * grid + before != rows:
        raise TeacherError(
            f"{source}: {key} has {rows} positions; {architecture} has {before} before those of a square grid of "
            "patches"
        )
    return grid


@torch.no_grad()
def _compare(tower: TimmTower, architecture: str) -> None:
    """Refuse a tower whose patch tokens differ from timm's own forward pass: versions may differ."""
    import timm

    images = torch.rand(1, 3, *tower.image_size, generator=torch.Generator().manual_seed(0))
    ours = token_features(tower, images)[:, 1:]
    theirs = tower.net.forward_features(images)[:, tower.prefix :]
    worst, scale = (ours - theirs).abs().max().item(), theirs.abs().max().item()
    if not worst <= _AGREES * max(scale, 1.0):
        raise TeacherError(
            f"{architecture}: patch features differ by {worst:.1g} (of {scale:.1g}) from those of timm "
            f"{timm.__version__}'s own forward pass, so this version of timm is not supported"
        )


def _to_precision(net: Any, precision: str) -> None:
    """Convert parameters to the precision; rotations stay float32, as timm creates them."""
    dtype = DTYPES[precision]
    for parameter in net.parameters():
        parameter.data = parameter.data.to(dtype)
    for module in net.modules():
        if getattr(module, "k_bias", None) is not None:
            module.k_bias = module.k_bias.to(dtype)
