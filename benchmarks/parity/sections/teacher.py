"""teacher.npz, teacher_openai.pt: what a CLIP says about images."""

from collections.abc import Iterator
from functools import cached_property

from benchmarks.parity.compare import Row
from benchmarks.parity.models import small_teacher
from benchmarks.parity.recorded import Arrays
from benchmarks.parity.section import Part, Section
from pipeline.teacher.tower import Teacher

__all__ = ["TeacherSection"]


class TeacherSection(Section):
    name = "teacher"
    title = "Teacher: a CLIP from a state dict in OpenAI's format"
    file = "teacher.npz"

    def parts(self) -> dict[str, Part]:
        return {"patches": self._patches, "class token": self._class_token}

    @cached_property
    def _arrays(self) -> Arrays:
        return self.recorded.arrays("teacher")

    @cached_property
    def _teacher(self) -> Teacher:
        return small_teacher(self.recorded, self.device)

    def _patches(self) -> Iterator[Row]:
        features, saliency = self._teacher.encode(self._arrays.tensor("imgs"))
        side = self._teacher.image_side // self._teacher.patch_side
        maps = features.transpose(1, 2).unflatten(2, (side, side))  # [M, C, side, side]
        yield self._arrays.check("patch features", "feats", maps, "teacher.features")
        at_patches = (slice(None), slice(1, None))
        what = "saliency: attention of the class token to the patches"
        yield self._arrays.check(what, "attn_cls", saliency, "teacher.attention", at=at_patches)

    def _class_token(self) -> Iterator[Row]:
        feature, attention = self._teacher.encode_class(self._arrays.tensor("imgs"))
        what = "all that the class token attends to, itself included"
        yield self._arrays.check(what, "attn_cls", attention, "teacher.attention")
        yield self._arrays.check("image feature", "cls_feat", feature, "teacher.features")
