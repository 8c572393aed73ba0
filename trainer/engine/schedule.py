"""Learning rate as a pure function of epoch and step; nothing is stepped, so nothing has to be restored."""

import math

from trainer.engine.config import EngineConfig

__all__ = ["learning_rate"]


def learning_rate(config: EngineConfig, epoch: int, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of one optimiser step.

    epoch  0-based; step  0-based within the epoch; steps_per_epoch  at least 1.

    "reference": timm's CosineLRScheduler stepped after each epoch with that epoch's number, as the reference does:
    every step of epoch e uses the value of max(e - 1, 0), and the warm-up does not delay the cosine, which is a little
    below the full rate already when it takes over. "per-step": time runs on within an epoch, and the cosine starts at
    the full rate where the warm-up ends.
    """
    base, bottom, warm = config.learning_rate, config.final_learning_rate, config.warmup_epochs
    if config.schedule == "reference":
        late = max(epoch - 1, 0)
        if late < warm:
            return config.warmup_learning_rate + late * ((base - config.warmup_learning_rate) / warm)
        return _cosine(base, bottom, late / config.horizon)
    time = epoch + step / steps_per_epoch
    if time < warm:
        return config.warmup_learning_rate + (base - config.warmup_learning_rate) * time / warm
    return _cosine(base, bottom, (time - warm) / (config.horizon - warm))


def _cosine(top: float, bottom: float, fraction: float) -> float:
    """Interpolate by a cosine from `top` at 0 to `bottom` at 1, and `bottom` beyond."""
    if fraction >= 1:
        return bottom
    return bottom + 0.5 * (top - bottom) * (1 + math.cos(math.pi * fraction))
