"""AdamW, and two rules for the parameters without weight decay."""

from collections.abc import Callable, Iterable
from typing import Literal

import torch
from torch import Tensor, nn

from trainer.engine.config import EngineConfig

__all__ = ["build_optimizer", "no_decay_names", "set_learning_rate", "total_gradient_norm"]

RATE_FACTOR = "rate_factor"  # of a parameter group: the learning rate there is so many times the optimiser's


def no_decay_names(parameters: Iterable[tuple[str, Tensor]], rule: Literal["vectors", "reference"]) -> list[str]:
    """List the names of the parameters without weight decay, in the order given.

    "vectors"    tensors of up to one dimension, names that end in ".bias", and mask tokens: what has no direction to
                 shrink.
    "reference"  tensors of one dimension, names that end in ".bias", and every name that contains "token", which also
                 spares all convolutions of the token embeddings and of the propagation. (A scalar would be decayed; no
                 student has one.) Source: the reference's parameter groups (params.json).
    """
    return [name for name, value in parameters if _spared(name, value, rule)]


def build_optimizer(
    model: nn.Module, config: EngineConfig, factor: Callable[[str], float] | None = None
) -> torch.optim.AdamW:
    """Build AdamW over all parameters that need a gradient, in groups: with decay, then without.

    factor  of the learning rate of a parameter, by its name; None: 1 for all. Each factor has its own two groups, in
            the order of first use.
    """
    named = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    spared = set(no_decay_names(named, config.no_decay))
    factors = {name: 1.0 if factor is None else factor(name) for name, _ in named}
    groups = [
        {
            "params": [value for name, value in named if factors[name] == one and (name in spared) == free],
            "weight_decay": 0.0 if free else config.weight_decay,
            RATE_FACTOR: one,
        }
        for one in dict.fromkeys(factors.values())
        for free in (False, True)
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.epsilon,
        fused=True,  # one pass over memory a parameter, on CPU and CUDA alike
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Use `rate`, times the group's own factor, in every group from the next step on."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get(RATE_FACTOR, 1.0)


def total_gradient_norm(parameters: Iterable[Tensor]) -> Tensor:
    """Compute the L2 norm of all gradients together, [] float32 on their device; missing gradients are skipped."""
    gradients = [value.grad for value in parameters if value.grad is not None]
    if not gradients:
        raise ValueError("no parameter has a gradient; call this after a backward pass")
    return torch.nn.utils.get_total_norm(gradients)


def _spared(name: str, value: Tensor, rule: str) -> bool:
    if rule == "reference":
        return value.ndim == 1 or name.endswith(".bias") or "token" in name
    return value.ndim <= 1 or name.endswith(".bias") or name.split(".")[-1] == "mask_token"
