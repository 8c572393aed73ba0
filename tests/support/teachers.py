"""Small teachers for tests: architectures that load in milliseconds, and weights files in every layout."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.config import ProjectionConfig, TeacherConfig

TINY = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 1, "layers": 1},
}
TINY_PROJECTION = ProjectionConfig(image_side=32, patch_side=8, splat=3)


def tiny_architecture(folder: Path) -> str:
    """Path of a JSON file that describes a two-block ViT for images of 32 pixels and patches of 8."""
    path = folder / "tiny.json"
    new = folder / f"tiny-{os.getpid()}.json"
    new.write_text(json.dumps(TINY))
    new.replace(path)  # at once: another process of the same test may be reading it
    return str(path)


def tiny_teacher(folder: Path, **settings: Any) -> TeacherConfig:
    """Config of a random teacher of that architecture, on the CPU."""
    chosen = {"architecture": tiny_architecture(folder), "pretrained": "random", "device": "cpu", "seed": 3} | settings
    return TeacherConfig(**chosen)


def clip_state(config: dict[str, Any] = TINY, *, seed: int = 0) -> dict[str, Tensor]:
    """State dict of a whole open_clip CLIP (both towers); every value is exact in float16."""
    from open_clip.model import CLIP

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"])
    return {name: tensor.half().float() for name, tensor in model.state_dict().items()}


def tower_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The vision tower of a CLIP's state dict, without its prefix."""
    return {name.removeprefix("visual."): tensor for name, tensor in state.items() if name.startswith("visual.")}


def write_weights(folder: Path, layout: str, state: dict[str, Tensor]) -> Path:
    """Write a CLIP's weights in one of LAYOUTS and return the file."""
    from safetensors.torch import save_file

    path = folder / f"{layout}.{'safetensors' if 'safetensors' in layout else 'pt'}"
    match layout:
        case "plain" | "half":
            torch.save({name: t.half() if layout == "half" else t for name, t in state.items()}, path)
        case "legacy":
            torch.save(state, path, _use_new_zipfile_serialization=False)
        case "openai":
            marks = {"input_resolution": 32, "context_length": 8, "vocab_size": 64}
            marked = state | {name: torch.tensor(value) for name, value in marks.items()}
            torch.save({name: tensor.half() for name, tensor in marked.items()}, path)
        case "checkpoint":
            torch.save(
                {"epoch": 3, "name": "x", "state_dict": {f"module.{name}": t for name, t in state.items()}}, path
            )
        case "tower":
            torch.save(tower_state(state), path)
        case "safetensors":
            save_file(state, path)
        case "half-tower-safetensors":
            save_file({name: tensor.half() for name, tensor in tower_state(state).items()}, path)
        case _:
            raise ValueError(layout)
    return path


LAYOUTS = ("plain", "half", "legacy", "openai", "checkpoint", "tower", "safetensors", "half-tower-safetensors")
