"""One optimiser step over one whole batch, however it is split over ranks and accumulated parts."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from cuda.token_maps import TokenMaps
from trainer.config import TrainerConfig
from trainer.engine.ranks import Ranks
from trainer.engine.update import Updates
from trainer.losses.alignment import Candidates, alignment_sum
from trainer.losses.terms import FEATURES, WHOLE, LossTerm, of_further, weighted_sum
from trainer.models.student import Predicted, Student
from trainer.models.tokens.multi_mask import repeat
from trainer.pretraining.alignment import Alignment
from trainer.pretraining.data import Part

__all__ = ["LiveTeacher", "Outcome", "Stepper"]


class LiveTeacher(Protocol):
    """A teacher that sees the student's own cloud in every step, instead of a cache.

    channels, views  of its maps.   call: points [B, N, 3] float32 -> TokenMaps of these points, in their own frame.
    """

    @property
    def channels(self) -> int: ...

    @property
    def views(self) -> int: ...

    def __call__(self, points: Tensor) -> TokenMaps: ...


class Outcome(NamedTuple):
    """Result of a step: losses by name over the whole batch, unweighted, and the gradient norm before clipping."""

    losses: Mapping[str, float]
    gradient_norm: float


class TeacherTargets(NamedTuple):
    """What a step needs of a teacher.

    stands_for, alignment     as in Stepper
    factor_2d, factor_global  of its losses, beside trainer.weight_2d and alignment.weight
    """

    stands_for: float
    alignment: Alignment | None
    factor_2d: float
    factor_global: float


class Stepper:
    """A model, its optimiser, and the optimiser step.

    stands_for  channels of the teacher for each channel of the maps, 1 or more where they are coordinates in a basis.
                The 2D loss is a mean over the former, so fewer channels do not weigh more.
    alignment   targets of the global loss, for a model with its head; None: there is none.
    factors     of the first teacher's 2D and global loss.
    further     what the step needs of each further teacher.
    """

    def __init__(
        self,
        model: Student,
        config: TrainerConfig,
        ranks: Ranks,
        teacher: LiveTeacher | None,
        *,
        stands_for: float = 1.0,
        alignment: Alignment | None = None,
        factors: tuple[float, float] = (1.0, 1.0),
        further: Sequence[TeacherTargets] = (),
    ):
        self.model, self.ranks, self.teacher = model, ranks, teacher
        self.updates = Updates(model, config, ranks)
        self._weights = dict(config.loss_weights)
        whole = 0.0 if alignment is None else alignment.config.weight
        teachers = [TeacherTargets(stands_for, alignment, *factors), *further]
        # Names of each teacher's two losses; the first one's are the plain ones.
        names = [(FEATURES, WHOLE)] + [(of_further(FEATURES, i), of_further(WHOLE, i)) for i in range(len(further))]
        self._stands_for = {name: said.stands_for for (name, _), said in zip(names, teachers, strict=True)}
        self._alignments = {
            index: (name, said.alignment)
            for index, ((_, name), said) in enumerate(zip(names, teachers, strict=True))
            if said.alignment is not None
        }
        for (name_2d, name_whole), said in zip(names, teachers, strict=True):
            self._weights[name_2d] = config.loss_weights[FEATURES] * said.factor_2d
            self._weights[name_whole] = whole * said.factor_global
        self._network: Callable[[Any, Tensor | None], Predicted] = model.network
        if config.compile:
            # Dynamic shapes: the number of visible tokens changes from step to step.
            self._network = torch.compile(model.network, dynamic=True)

    def step(self, parts: Sequence[Part], rate: float) -> Outcome:
        """Take one step on this rank's parts of a batch, at learning rate `rate`.

        Every loss is a mean over the whole batch: over all hidden (3D) or visible (2D) tokens, all shapes (global),
        under each of their masks. All parts are planned before the first is computed, because a part's gradient is
        divided by counts that depend on all of them.
        """
        self.model.train()
        plans = [self._plan(part) for part in parts]
        wholes = [
            _GlobalLoss(alignment, self.ranks, parts, teacher=index, name=name)
            for index, (name, alignment) in self._alignments.items()
        ]
        counts = self._counts(plans, wholes)
        sums: list[Tensor] = []
        self.updates.begin()
        for index, (plan, drop_path) in enumerate(plans):
            with self.updates.autocast():
                prediction = self._network(plan, drop_path)
                losses = self.model.losses(plan, prediction)
            for whole in wholes:
                losses[whole.name] = whole.term(index, whole.answers(prediction))
            self.updates.backward(weighted_sum(losses, counts=counts, weights=self._weights))
            sums.append(torch.stack([losses[name].sum.detach() for name in counts]))
        norm = self.updates.take(rate)
        means = self.ranks.sum(torch.stack(sums).sum(0)) / torch.stack(list(counts.values())).clamp(min=1)
        # The one point where the host waits for the device, after the whole step has been handed to it.
        *found, gradient_norm = torch.cat((means, norm.reshape(1))).tolist()
        return Outcome(dict(zip(counts, found, strict=True)), gradient_norm)

    def _plan(self, part: Part) -> tuple[Any, Tensor | None]:
        part = part.to(self.ranks.device)
        maps, frame = part.maps, part.points_canonical
        if self.teacher is not None:
            maps, frame = self.teacher(part.points), part.points
        # Only students that know of further teachers take their maps.
        further = {"further": [said.maps for said in part.further]} if part.further else {}
        return self.model.plan(part.points, frame, maps, part.draws, **further), part.draws.drop_path

    def _counts(self, plans: Sequence[tuple[Any, Any]], wholes: Sequence["_GlobalLoss"]) -> dict[str, Tensor]:
        """Sum the counts that the losses are divided by over the whole batch, in one collective: name -> [] float32."""
        each = [self.model.loss_counts(plan) for plan, _ in plans]
        own = {name: torch.stack([counts[name] for counts in each]).sum() for name in each[0]}
        own |= {whole.name: whole.count for whole in wholes}
        counts = dict(zip(own, self.ranks.sum(torch.stack(list(own.values()))), strict=True))
        return {name: count * self._stands_for.get(name, 1.0) for name, count in counts.items()}


class _GlobalLoss:
    """The global loss of one rank's parts of a batch, by one teacher.

    count  of their shapes with a known target, times the masks of each.

    teacher  0 for the first, 1 for the first of the further ones.
    """

    def __init__(
        self, alignment: Alignment, ranks: Ranks, parts: Sequence[Part], *, teacher: int = 0, name: str = WHOLE
    ):
        self.name = name
        self._teacher = teacher
        self._temperature = alignment.config.temperature
        self._parts = alignment.mean.shape[0] if alignment.config.contrast == "views" else 1
        self._own: list[Candidates] = []
        self._masks = parts[0].masks  # of each shape, the same in all parts: each is contrasted, targets stand once
        for part in parts:
            whole = part.further[teacher - 1].whole if teacher else part.whole
            assert whole is not None
            assert part.shapes is not None
            shapes = torch.from_numpy(part.shapes)
            self._own.append(alignment.candidates(whole.to(ranks.device), shapes.to(ranks.device)))
        together = Candidates(*map(torch.cat, zip(*self._own, strict=True)))
        self._others = alignment.others(together, ranks)
        self.count = together.known.sum().float() * self._masks

    def answers(self, prediction: Any) -> Tensor:
        """The student's answers to this teacher, [B, V * C], among a network's predictions."""
        found: Tensor | None = prediction.further[self._teacher - 1].whole if self._teacher else prediction.whole
        assert found is not None
        return found

    def term(self, index: int, answers: Tensor) -> LossTerm:
        """Compute the loss of part `index`. answers [B * masks, V * C], the student's."""
        own = Candidates(*(repeat(tensor, self._masks) for tensor in self._own[index]))
        total = alignment_sum(answers, own, self._others, self._temperature, parts=self._parts)
        return LossTerm(total, own.known.sum().float())
