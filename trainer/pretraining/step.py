"""One optimiser step over one whole batch, however it is split over ranks and accumulated parts."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from trainer.config import TrainerConfig
from trainer.engine.optimiser import build_optimizer, set_learning_rate, total_gradient_norm
from trainer.engine.ranks import Ranks
from trainer.losses.alignment import Candidates, alignment_sum
from trainer.models.hierarchical.student import I2PMAE, Plan, Prediction
from trainer.models.tokens.maps import TeacherMaps
from trainer.pretraining.alignment import Alignment
from trainer.pretraining.data import Part

__all__ = ["LiveTeacher", "Outcome", "Stepper"]

_AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class LiveTeacher(Protocol):
    """A teacher that looks at the student's own cloud in every step, instead of a cache.

    channels, views  of its maps.   call: points [B, N, 3] float32 -> TeacherMaps of these points, in their own frame.
    """

    @property
    def channels(self) -> int: ...

    @property
    def views(self) -> int: ...

    def __call__(self, points: Tensor) -> TeacherMaps: ...


class Outcome(NamedTuple):
    """What a step found; losses over the whole batch, gradient norm before clipping."""

    loss_3d: float
    loss_2d: float
    gradient_norm: float
    loss_global: float = 0.0


class Stepper:
    """A model, its optimiser, and how to take a step with them.

    stands_for  channels of the teacher for each channel of the maps, 1 or more where they are coordinates in a basis.
                The 2D loss is a mean over the former, so fewer channels do not weigh more.
    alignment   targets of the global loss, for a model with its head; None: there is none.
    """

    def __init__(
        self,
        model: I2PMAE,
        config: TrainerConfig,
        ranks: Ranks,
        teacher: LiveTeacher | None,
        *,
        stands_for: float = 1.0,
        alignment: Alignment | None = None,
    ):
        self.alignment = alignment
        self.model, self.config, self.ranks, self.teacher = model, config, ranks, teacher
        self._stands_for = torch.tensor([1.0, stands_for], device=ranks.device)
        self.optimizer = build_optimizer(model, config)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.scaler = torch.amp.GradScaler(ranks.device.type) if config.precision == "float16" else None
        self._network: Callable[[Plan, Tensor | None], Prediction] = model.network
        if config.compile:
            self._network = torch.compile(model.network, dynamic=True)

    def step(self, parts: Sequence[Part], rate: float) -> Outcome:
        """Take one step on this rank's parts of a batch, at learning rate `rate`.

        The loss is the mean over all hidden (3D) or visible (2D) tokens of the whole batch. All parts are planned
        before the first is computed, because a part's gradient is divided by counts that depend on all of them.
        """
        self.model.train()
        plans = [self._plan(part) for part in parts]
        counts = torch.stack([torch.stack(self.model.loss_counts(plan)) for plan, _ in plans]).sum(0)  # [2]
        counts = self.ranks.sum(counts) * self._stands_for
        sums, whole = torch.zeros_like(counts), _Whole(self.alignment, self.ranks, parts)
        self.optimizer.zero_grad(set_to_none=True)
        for index, (plan, drop_path) in enumerate(plans):
            with self._autocast():
                prediction = self._network(plan, drop_path)
                output = self.model.losses(plan, prediction)
            loss = output.normalised(counts[0], counts[1], self.config.weight_2d)
            if prediction.whole is not None:
                loss = loss + whole.share(index, prediction.whole)
            (loss if self.scaler is None else self.scaler.scale(loss)).backward()
            sums += torch.stack((output.sum_3d, output.sum_2d)).detach()
        norm = self._update(rate)
        losses = self.ranks.sum(sums) / counts.clamp(min=1)
        # The one point where the host waits for the device, after the whole step has been handed to it.
        found = torch.cat((losses, norm.reshape(1), whole.mean().reshape(1))).tolist()
        return Outcome(*found)

    def _plan(self, part: Part) -> tuple[Plan, Tensor | None]:
        part = part.to(self.ranks.device)
        maps, frame = part.maps, part.points_canonical
        if self.teacher is not None:
            maps, frame = self.teacher(part.points), part.points
        return self.model.plan(part.points, frame, maps, part.draws), part.draws.drop_path

    def _update(self, rate: float) -> Tensor:
        """Sum the gradients over ranks, clip, step; -> norm of the gradient before clipping, [] float32."""
        set_learning_rate(self.optimizer, rate)
        self.ranks.sum_gradients(self.parameters)
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        norm = total_gradient_norm(self.parameters)
        if self.config.clip_gradient:
            gradients = [p for p in self.parameters if p.grad is not None]
            torch.nn.utils.clip_grads_with_norm_(gradients, self.config.clip_gradient, norm)
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)  # leaves a step out where the scaled gradient overflowed
            self.scaler.update()
        return norm

    def _autocast(self) -> AbstractContextManager[None]:
        dtype = _AUTOCAST.get(self.config.precision)
        return torch.autocast(self.ranks.device.type, dtype=dtype, enabled=dtype is not None)


class _Whole:
    """The global loss of one step, part by part."""

    def __init__(self, alignment: Alignment | None, ranks: Ranks, parts: Sequence[Part]):
        self._alignment, self._ranks = alignment, ranks
        self._sum = self._count = torch.zeros((), device=ranks.device)
        if alignment is None:
            return
        self._own = []
        for part in parts:
            assert part.whole is not None
            assert part.shapes is not None
            shapes = torch.from_numpy(part.shapes)
            self._own.append(alignment.candidates(part.whole.to(ranks.device), shapes.to(ranks.device)))
        together = Candidates(*map(torch.cat, zip(*self._own, strict=True)))
        self._others = alignment.others(together, ranks)
        self._count = ranks.sum(together.known.sum().float())

    def share(self, index: int, answers: Tensor) -> Tensor:
        """The share of part `index` in the weighted loss of the whole batch."""
        assert self._alignment is not None
        config = self._alignment.config
        found = alignment_sum(answers, self._own[index], self._others, config.temperature)
        self._sum = self._sum + found.detach()
        return config.weight * found / self._count.clamp(min=1)

    def mean(self) -> Tensor:
        """The loss over the whole batch, unweighted, [] float32; 0 without one."""
        return self._ranks.sum(self._sum) / self._count.clamp(min=1)
