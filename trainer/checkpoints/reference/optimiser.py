"""Conversion between the reference's optimiser state, keyed by position, and ours, keyed by name.

It is torch's AdamW with two groups, first what weight decay spares, then the rest, each in the order in which the model
registers its parameters; the frozen teacher's are among them, last, and have no state.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from trainer.checkpoints.reference.pth_file import TEACHER
from trainer.engine.optimiser import no_decay_names

__all__ = ["default_groups", "optimizer_from_reference", "optimizer_to_reference"]

BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
STATE = ("exp_avg", "exp_avg_sq", "step")


class _Unfit(Exception):
    """A state that cannot be converted, with the reason."""


def optimizer_from_reference(
    state: Mapping[str, Any] | None, entries: Mapping[str, Tensor], teacher: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[dict[str, Any]], str]:
    """Convert the state of the reference's optimiser to named tensors.

    state    its state dict, or None.
    entries  the model's tensors, in the reference's order; teacher: the teacher's.
    ->       `<what>/<name>` -> tensor as in trainer.checkpoints.files, the settings of the two groups, and why there is
             nothing ("" where there is).
    """
    try:
        if state is None:
            raise _Unfit("the file has none")
        return *_named(state, entries, teacher), ""
    except _Unfit as reason:
        return {}, [], str(reason)


def optimizer_to_reference(
    flat: Mapping[str, Tensor],
    groups: list[dict[str, Any]],
    entries: Mapping[str, Tensor],
    teacher: Mapping[str, Tensor],
) -> dict[str, Any]:
    """Convert named optimiser state to the reference's layout; the inverse of optimizer_from_reference.

    groups  settings of the two groups, the one without weight decay first.
    """
    order = _order(entries, teacher)
    state: dict[int, dict[str, Any]] = {}
    for key in sorted(flat):
        what, _, name = key.partition("/")
        state.setdefault(order.index(name), {})[what] = flat[key]
    spared = len(_spared(entries, teacher))
    positions = list(range(len(order)))
    listed = [
        {**settings, "params": chosen}
        for settings, chosen in zip(groups, (positions[:spared], positions[spared:]), strict=True)
    ]
    return {"state": dict(sorted(state.items())), "param_groups": listed}


def default_groups(
    *, rate: float, initial_rate: float, decay: float, betas: Any, epsilon: float
) -> list[dict[str, Any]]:
    """Return settings of the two groups as this torch version writes them, for a run not made by the reference."""
    groups = [{"params": [torch.zeros(0, requires_grad=True)], "weight_decay": value} for value in (0.0, decay)]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=tuple(betas), eps=epsilon)
    settings = optimizer.state_dict()["param_groups"]
    return [{**{k: v for k, v in group.items() if k != "params"}, "initial_lr": initial_rate} for group in settings]


def _named(
    state: Mapping[str, Any], entries: Mapping[str, Tensor], teacher: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    held, groups = state.get("state"), state.get("param_groups")
    if not isinstance(held, dict) or not isinstance(groups, list) or not all(isinstance(g, dict) for g in groups):
        raise _Unfit("it is not a torch optimiser's")
    expected = [len(_spared(entries, teacher)), 0]
    order = _order(entries, teacher)
    expected[1] = len(order) - expected[0]
    found = [group.get("params") for group in groups]
    if [len(ids) if isinstance(ids, list) else -1 for ids in found] != expected:
        raise _Unfit(f"its groups are not {expected[0]} parameters without weight decay and {expected[1]} with it")
    names = dict(zip([i for ids in found for i in ids], order, strict=True))
    shapes = {name: value.shape for name, value in entries.items()}
    flat: dict[str, Tensor] = {}
    for index, values in held.items():
        name = names.get(index, "")
        if not isinstance(values, dict) or name not in shapes:
            raise _Unfit(f"its state {index!r} matches no parameter of the model")
        for what, value in values.items():
            if what not in STATE or not isinstance(value, Tensor | int | float):
                raise _Unfit(f"it is not AdamW's: {what} of {name}")
            tensor = torch.as_tensor(value, dtype=torch.float32) if what == "step" else torch.as_tensor(value)
            if tensor.shape != (torch.Size() if what == "step" else shapes[name]) or tensor.dtype != torch.float32:
                raise _Unfit(f"{what} of {name} is {list(tensor.shape)} {tensor.dtype}")
            flat[f"{what}/{name}"] = tensor
    return flat, [{key: value for key, value in group.items() if key != "params"} for group in groups]


def _order(entries: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> list[str]:
    """Return every parameter's name by position: those without weight decay, then the others."""
    # torch stores state by position, so this has to be the order in which the reference builds its groups.
    spared = _spared(entries, teacher)
    return [*spared, *(name for name in _parameters(entries, teacher) if name not in set(spared))]


def _spared(entries: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> list[str]:
    return no_decay_names(_parameters(entries, teacher).items(), "reference")


def _parameters(entries: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> dict[str, Tensor]:
    own = {name: value for name, value in entries.items() if not name.endswith(BUFFERS)}
    return own | {TEACHER + name: value for name, value in teacher.items()}
