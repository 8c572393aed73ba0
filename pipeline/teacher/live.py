"""A live teacher: encodes the current clouds in every step, as the reference does, instead of reading a cache."""

import torch
from torch import Tensor

from cuda.geometry import ViewGeometry
from cuda.token_maps import TokenMaps
from pipeline.config import ProjectionConfig
from pipeline.errors import TeacherError
from pipeline.teacher.channels import in_basis
from pipeline.teacher.tower import Teacher, size_conflicts
from pipeline.views import VIEWS, render_views
from teacher_cache.format.basis import Basis

__all__ = ["LiveTeacher"]


class LiveTeacher:
    """Projection and teacher in one call: `LiveTeacher(projection, teacher)(points)`.

    basis  of the cache whose features these should match: `cache.basis`. None: the teacher's own channels.

    The teacher is frozen and not part of any model: it is not trained, saved or moved with the student.

    channels    C
    views       V
    image_side  S

    Raises TeacherError when the projection's sizes are not the teacher's, or the basis is of another teacher's.
    """

    def __init__(self, projection: ProjectionConfig, teacher: Teacher, basis: Basis | None = None) -> None:
        faults = list(
            size_conflicts(
                "the loaded teacher", teacher.image_side, teacher.patch_side, projection, teacher.normalisations
            )
        )
        if basis is not None and basis.teacher_channels != teacher.channels:
            faults.append(
                f"the cache's basis belongs to a teacher with {basis.teacher_channels} channels; the loaded one has "
                f"{teacher.channels}. Use the cache's own teacher, or train on a cache of this one"
            )
        if faults:
            raise TeacherError("\n".join(faults))
        self._projection = projection
        self._teacher = teacher
        self._basis = basis
        self.channels = teacher.channels if basis is None else basis.channels
        self.views = VIEWS
        self.image_side = teacher.image_side

    @torch.no_grad()
    def __call__(self, points: Tensor) -> TokenMaps:
        """Compute the maps of each cloud.

        points  [B, N, 3] float32, finite: canonical clouds, or augmented ones where the teacher is to see the
                augmentation; later lookups must use coordinates of the same frame.
        ->      TokenMaps, features float32, on the device of `points`; no gradient.
        """
        views = render_views(points.detach().to(self._teacher.device), self._projection)
        features, saliency = self._teacher.encode(views.images)
        if self._basis is not None:
            features = in_basis(features, self._basis)
        geometry = ViewGeometry(*(part.to(points.device) for part in views.geometry))
        return TokenMaps(
            features.unflatten(0, (-1, VIEWS)).to(points.device),
            saliency.unflatten(0, (-1, VIEWS)).to(points.device),
            geometry,
            self.image_side,
        )
