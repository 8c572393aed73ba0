"""Files of training: checkpoints to resume from, and a CLIP in one safetensors file. Nothing is pickled."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from pipeline.errors import TeacherError
from pipeline.teacher.tiny_clip.captions import Vocabulary
from pipeline.teacher.tiny_clip.towers import plain_state
from teacher_cache.storage.atomic import replace_file

__all__ = ["load_clip", "read_checkpoint", "read_clip_header", "save_clip", "write_checkpoint"]

CHECKPOINT = "checkpoint.safetensors"
_HEADER = "i2p_tiny_clip"


def write_checkpoint(folder: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Write model, AdamW's state and the steps done to one file that atomically replaces the last one."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{key}": torch.as_tensor(value) for key, value in state.items()}
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    replace_file(folder / CHECKPOINT, save(plain, metadata={"step": str(step)}))


def read_checkpoint(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Load a folder's checkpoint; -> steps done, 0 if there is none. Raises TeacherError for a damaged one."""
    path = folder / CHECKPOINT
    if not path.exists():
        return 0
    try:
        with safe_open(path, framework="pt") as file:
            step = int(file.metadata()["step"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise TeacherError(f"{path}: not a complete checkpoint ({error}).\n  Delete it to start over.") from error
    try:
        model.load_state_dict({name[6:]: value for name, value in tensors.items() if name.startswith("model.")})
    except RuntimeError as error:
        raise TeacherError(f"{path}: weights of another architecture ({error}).\n  Delete it to start over.") from error
    states: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, number, key = name.split(".", 2)
            states.setdefault(int(number), {})[key] = value
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
    return step


def save_clip(path: Path, model: nn.Module, architecture: Mapping[str, Any], vocabulary: Vocabulary) -> None:
    """Save both towers in float16, under open_clip's names, with vocabulary and sizes in the header.

    The vision tower is read by `pipeline.teacher.weights.read_weights` like that of any other CLIP.
    """
    tensors = {name: value.detach().cpu().half().contiguous() for name, value in plain_state(model).items()}
    content = json.dumps({"architecture": architecture, "words": vocabulary.words})
    replace_file(path, save(tensors, metadata={_HEADER: content}))  # one entry: safetensors does not keep their order


def read_clip_header(path: Path) -> tuple[dict[str, Any], Vocabulary] | None:
    """Read architecture and vocabulary of a file made by `save_clip`; None for any other safetensors file."""
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
        if _HEADER not in header:
            return None
        content = json.loads(header[_HEADER])
        architecture, text = content["architecture"], content["architecture"]["text_cfg"]
        words = Vocabulary(content["words"], size=text["vocab_size"], length=text["context_length"])
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise TeacherError(f"{path}: not a complete tiny CLIP file ({error}).") from error
    return architecture, words


def load_clip(path: Path) -> tuple[Any, Vocabulary] | None:
    """Load the CLIP of a file made by `save_clip`: both towers, float32, frozen, on the CPU; None for other files."""
    from open_clip.model import CLIP

    found = read_clip_header(path)
    if found is None:
        return None
    architecture, vocabulary = found
    model = CLIP(architecture["embed_dim"], architecture["vision_cfg"], architecture["text_cfg"])
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 - not a mapping
    model.load_state_dict(tensors, strict=False)  # the attention mask is a constant, not a weight
    return model.eval().requires_grad_(False), vocabulary
