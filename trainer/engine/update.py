"""One update of a model's weights from the gradients of all ranks, and the arithmetic that precedes it."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from trainer.engine.config import EngineConfig
from trainer.engine.optimiser import build_optimizer, set_learning_rate, total_gradient_norm
from trainer.engine.ranks import Ranks

__all__ = ["Updates"]

_AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class Updates:
    """The optimiser of a model, and how its steps are taken: over all ranks, scaled, clipped.

    factor      of the learning rate of a parameter, by its name; None: 1
    optimizer   AdamW over the parameters that need a gradient
    parameters  these
    scaler      of losses, for float16 alone
    """

    def __init__(
        self, model: nn.Module, config: EngineConfig, ranks: Ranks, factor: Callable[[str], float] | None = None
    ):
        self._config, self._ranks = config, ranks
        self.optimizer = build_optimizer(model, config, factor)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.scaler = torch.amp.GradScaler(ranks.device.type) if config.precision == "float16" else None

    def autocast(self) -> AbstractContextManager[None]:
        """Return the context of a forward pass in the configured precision."""
        dtype = _AUTOCAST.get(self._config.precision)
        return torch.autocast(self._ranks.device.type, dtype=dtype, enabled=dtype is not None)

    def begin(self) -> None:
        """Discard the gradients of the previous step."""
        # None, not zeros: AdamW skips a parameter without a gradient, but would decay one with a gradient of zero.
        self.optimizer.zero_grad(set_to_none=True)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of one part's share of a batch's loss, [] float32, to that of the parts before it."""
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def take(self, rate: float, *, twice: bool = False) -> Tensor:
        """Sum the gradients over ranks, clip, step at learning rate `rate`.

        twice  first step by the gradient as it is, then clip it and step again, as the field's scripts for part
               segmentation do: nearly twice the rate and the decay. Not with a scaler.

        ->  norm of the gradient before clipping, [] float32, on the device: nothing is waited for.

        All ranks call it together. Each rank's loss is divided by counts of the whole batch, so the sum of the
        gradients is the batch's gradient.
        """
        set_learning_rate(self.optimizer, rate)
        # Order matters: sum, unscale, then the norm. So clipping sees the true gradient of the batch, and all ranks
        # clip by the same norm and take, or skip, the same step.
        self._ranks.sum_gradients(self.parameters)
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        norm = total_gradient_norm(self.parameters)
        if twice:
            if self.scaler is not None:
                raise ValueError("two steps with one gradient need a precision without loss scaling")
            self.optimizer.step()
        if self._config.clip_gradient:
            gradients = [p for p in self.parameters if p.grad is not None]
            torch.nn.utils.clip_grads_with_norm_(gradients, self._config.clip_gradient, norm)
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)  # skips the step if the scaled gradient overflowed
            self.scaler.update()
        return norm

    def is_finite(self, losses: Iterable[float], gradient_norm: float) -> bool:
        """Tell whether a step's numbers are finite: its losses, and its gradient unless the scaler handles that.

        A float16 gradient that overflows skips its step and lowers the scale for the next.
        """
        values = [*losses, 0.0 if self.scaler is not None else gradient_norm]
        return all(abs(value) < float("inf") for value in values)
