"""What students have in common that teachers' maps guide: the checks of what they are given, and further teachers."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor

from cuda.token_maps import TokenMaps
from trainer.losses.reconstruction import squared_error_sum
from trainer.losses.terms import FEATURES, LossTerm, of_further
from trainer.models.config import MaskingConfig, StudentConfig
from trainer.models.random_inputs import Draws
from trainer.models.student import Further, Said, Student

__all__ = ["GuidedStudent"]


class GuidedStudent(Student):
    """A student with 3D and 2D targets of one teacher, and 2D and global ones of any number of others.

    config, masking          its settings; config.targets is "3d", "2d" or "both"
    teacher_channels, views  C and V of the first teacher's maps
    further                  the teachers beside that one
    """

    several_teachers: ClassVar[bool] = True
    several_masks: ClassVar[bool] = True
    config: StudentConfig
    masking: MaskingConfig
    teacher_channels: int
    views: int
    further: tuple[Further, ...]

    def predicts_further(self, index: int) -> bool:
        """Tell whether features of a further teacher are predicted."""
        return self.config.predicts_features and self.further[index].features

    def further_losses(
        self,
        targets: Sequence[Tensor | None],
        said: Sequence[Said],
        counts: Mapping[str, Tensor],
        weight: Tensor | None = None,
    ) -> dict[str, LossTerm]:
        """Compare predicted features of further teachers with their targets [M, K * V * C]: "2d_2" and so on.

        weight  [M] of each row, as of `squared_error_sum`; None: 1.
        """
        losses: dict[str, LossTerm] = {}
        for index, (target, one) in enumerate(zip(targets, said, strict=True)):
            if target is not None and one.features is not None:
                name = of_further(FEATURES, index)
                losses[name] = LossTerm(squared_error_sum(one.features, target, weight), counts[name])
        return losses

    def check_maps(
        self,
        points: Tensor,
        points_canonical: Tensor,
        maps: TokenMaps | None,
        further: Sequence[TokenMaps | None],
        *,
        ordered: bool,
    ) -> None:
        """Raise ValueError for points of two shapes, and for maps that are missing or of another teacher.

        ordered  the order in which tokens are hidden is given, so no saliency is asked for.
        """
        B, targets = points.shape[0], self.config.targets  # type: ignore[attr-defined]
        if points_canonical.shape != points.shape:
            raise ValueError(
                f"points_canonical have shape {tuple(points_canonical.shape)}; expected the shape of points, "
                f"{tuple(points.shape)}: they are the same points in the teacher's frame"
            )
        if maps is None and (targets != "3d" or (not ordered and self.masking.mode == "saliency")):
            raise ValueError(
                f"no teacher maps, but model.targets = {targets!r} and masking.mode = {self.masking.mode!r} need them; "
                'pass maps, or use targets = "3d" with mode = "random" or "block"'
            )
        if maps is not None and targets != "3d":
            got = (maps.features.shape[0], maps.features.shape[1], maps.features.shape[3])
            if got != (B, self.views, self.teacher_channels):
                raise ValueError(
                    f"teacher features have {got[0]} shapes, {got[1]} views, {got[2]} channels; expected {B}, "
                    f"{self.views}, {self.teacher_channels}. Create the model for the cache that it reads."
                )
        if len(further) != len(self.further):
            raise ValueError(f"maps of {len(further)} further teachers; the model was made for {len(self.further)}")
        for index, (others, teacher) in enumerate(zip(further, self.further, strict=True)):
            if not self.predicts_further(index):
                continue
            wanted = [B, teacher.views, teacher.channels]
            found = None if others is None else [*others.features.shape[:2], others.features.shape[3]]
            if found != wanted:
                raise ValueError(
                    f"features of teacher {index + 2} have shapes, views and channels {found}; expected {wanted}. "
                    "Create the model for the caches that it reads."
                )

    @staticmethod
    def masks_of_each(clouds: int, groups: int, draws: Draws | None, mask_order: Tensor | None) -> int:
        """Return how many masks each cloud gets.

        groups  of which some are hidden.   draws, mask_order  of the plan; at least one of them is given.

        Raises ValueError for samples that are not equally many a cloud, and for another shape.
        """
        if mask_order is not None and (mask_order.ndim != 2 or mask_order.shape[1] != groups):
            raise ValueError(
                f"mask_order has shape {tuple(mask_order.shape)}; expected [{clouds}, {groups}], or as many rows more "
                "for each further mask"
            )
        given = {"draws": None if draws is None else len(draws.mask)}
        given["mask_order"] = None if mask_order is None else len(mask_order)
        found = {name: samples for name, samples in given.items() if samples is not None}
        for name, samples in found.items():
            if samples == 0 or samples % clouds or samples != max(found.values()):
                counts = " and ".join(f"{name} of {samples}" for name, samples in found.items())
                raise ValueError(
                    f"{counts} samples for {clouds} clouds; expected one a cloud, or as many masks of each, those of a "
                    "cloud one after the other"
                )
        return max(found.values()) // clouds
