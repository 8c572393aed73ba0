"""The reference's files to test with: made of small models of ours, in its layout."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.support.reference import reference_json
from trainer.checkpoints.reference.optimiser import default_groups, optimizer_to_reference


def entries_of(model: nn.Module, *, prefix: str = "module.") -> "OrderedDict[str, Tensor]":
    """A model's tensors under the reference's names."""
    return OrderedDict((prefix + name, value) for name, value in model.state_dict().items())


def write_file(path: Path, entries: dict[str, Any], **others: Any) -> Path:
    """A file as the reference's training writes it; `others` override what stands beside the weights."""
    content = {"base_model": entries, "epoch": 4, "metrics": {"acc": 0.5}, "best_metrics": {"acc": 0.75}, **others}
    torch.save(content, path)
    return path


def optimizer_state(model: nn.Module, seed: int = 0) -> dict[str, Any]:
    """A state of the reference's optimiser after 7 steps, random numbers, for a model without a teacher."""
    generator = torch.Generator().manual_seed(seed)
    flat: dict[str, Tensor] = {}
    for name, value in model.named_parameters():
        flat[f"step/{name}"] = torch.tensor(7.0)
        flat[f"exp_avg/{name}"] = torch.randn(value.shape, generator=generator)
        flat[f"exp_avg_sq/{name}"] = torch.rand(value.shape, generator=generator)
    groups = default_groups(rate=1e-4, initial_rate=1e-3, decay=0.05, betas=(0.9, 0.999), epsilon=1e-8)
    return optimizer_to_reference(flat, groups, model.state_dict(), {})


def tiny_clip(channels: int) -> dict[str, Tensor]:
    """The least that passes for CLIP's weights under OpenAI's names; half precision, as OpenAI has them."""
    sizes = {"visual.conv1.weight": (8, 3, 16, 16), "visual.proj": (8, channels), "text_projection": (4, channels)}
    generator = torch.Generator().manual_seed(1)
    weights = {name: torch.randn(size, generator=generator).half() for name, size in sizes.items()}
    return {**weights, "logit_scale": torch.tensor(4.6), "token_embedding.weight": torch.ones(5, 4)}


def recorded_settings(which: str) -> dict[str, dict[str, Any]]:
    """What the recorded files do not show of themselves: pretrain, modelnet40, scanobjectnn or partseg."""
    sizes = reference_json("config")["config"]
    if which == "pretrain":
        own = sizes["pre"]
        model = {"groups": own["num_groups"], "neighbours": own["group_sizes"], "heads": own["num_heads"]}
        return {"model": _tuples(model), "masking": {"ratio": own["mask_ratio"]}}
    own = sizes["seg" if which == "partseg" else "fine"]
    radius = own[{"modelnet40": "radius_mn", "scanobjectnn": "radius_scan", "partseg": "local_radius"}[which]]
    section = "segmentation" if which == "partseg" else "classifier"
    head = {"neighbours": own["group_sizes"], "radius": radius}
    return {"model": _tuples({"groups": own["num_groups"], "heads": own["num_heads"]}), section: _tuples(head)}


def _tuples(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}


def assert_equal_content(got: Any, expected: Any, where: str = "file") -> None:
    """The same keys in the same order within state dicts, the same numbers, the same bits in every tensor."""
    if isinstance(expected, Tensor):
        assert got.dtype == expected.dtype, where
        assert got.shape == expected.shape, where
        assert got.contiguous().numpy().tobytes() == expected.contiguous().numpy().tobytes(), where
    elif isinstance(expected, dict):
        assert set(got) == set(expected), where
        if isinstance(expected, OrderedDict):
            assert list(got) == list(expected), where
        for key, value in expected.items():
            assert_equal_content(got[key], value, f"{where}[{key!r}]")
    else:
        assert type(got) is type(expected), where
        assert got == expected, where
