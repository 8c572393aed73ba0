"""Progress of a run: epochs, steps, and the sums of the epoch under way."""

from collections.abc import Mapping
from typing import Any

import torch

from trainer.checkpoints.files import Header
from trainer.checkpoints.under_way import totals_from_json, totals_to_json
from trainer.engine.ranks import Ranks
from trainer.pretraining.step import Outcome

__all__ = ["Progress"]


class Progress:
    """Progress of a run, in one rank: all that a checkpoint holds besides weights and the optimiser's averages.

    epoch       epochs completed
    step        optimiser steps taken
    steps_done  of the epoch under way
    metrics     of the epoch just completed
    """

    def __init__(self, ranks: Ranks, *, count_skipped: bool):
        """count_skipped  damaged records may be skipped, so that ranks have to add up how many were."""
        self._ranks, self._count_skipped = ranks, count_skipped
        self.epoch = self.step = 0
        self.metrics: dict[str, Any] = {}
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        self.steps_done = 0
        self._losses: dict[str, float] = {}  # summed over these steps
        self._gradient_norm = 0.0
        self._skipped_before = 0  # damaged records skipped in these by all ranks, up to the checkpoint resumed from
        self._skipped = 0  # and since then, by this rank

    def add(self, outcome: Outcome, skipped: int) -> None:
        """Count a step that was taken. skipped  damaged records of this rank's share of it."""
        self._losses = {name: self._losses.get(name, 0.0) + value for name, value in outcome.losses.items()}
        self._gradient_norm += outcome.gradient_norm
        self._skipped += skipped
        self.step += 1
        self.steps_done += 1

    def skipped(self) -> int:
        """Damaged records skipped in the epoch under way, by all ranks, which have to ask together."""
        if not self._count_skipped:
            return 0
        return self._skipped_before + int(self._ranks.sum(torch.tensor(self._skipped)))

    def means(self) -> Outcome:
        """Compute the means over the steps of the epoch under way, at least one."""
        losses = {name: total / self.steps_done for name, total in self._losses.items()}
        return Outcome(losses, self._gradient_norm / self.steps_done)

    def end_epoch(self, metrics: Mapping[str, Any]) -> None:
        """Count the epoch under way as completed, with what a checkpoint is to say of it."""
        self.epoch += 1
        self.metrics = dict(metrics)
        self._begin_epoch()

    def under_way(self) -> dict[str, Any] | None:
        """Return the entry `under_way` of a checkpoint's header; a collective call."""
        skipped = self.skipped()
        if not self.steps_done:
            return None
        totals = totals_to_json(self._losses, self._gradient_norm)
        return {"steps": self.steps_done, "totals": totals, "skipped": skipped}

    def resume(self, header: Header) -> None:
        """Take over what a checkpoint says."""
        self._begin_epoch()
        self.epoch, self.step, self.metrics = header.epoch, header.step, dict(header.metrics)
        if header.under_way is not None:
            self.steps_done = int(header.under_way["steps"])
            self._losses, self._gradient_norm = totals_from_json(header.under_way["totals"])
            self._skipped_before = int(header.under_way["skipped"])
