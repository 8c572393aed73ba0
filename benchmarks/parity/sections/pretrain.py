"""model_pretrain.npz, pretrain_ckpt.pth: the whole pre-training model at a small size, teacher included."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.parity.compare import Row, compare, same
from benchmarks.parity.models import small_student, small_teacher
from benchmarks.parity.quantities import by_gradient, doubled, gradient_norms, names_of, settled
from benchmarks.parity.recorded import Arrays
from benchmarks.parity.section import Part, Section
from cuda.token_maps import TokenMaps
from pipeline.teacher.live import LiveTeacher
from pipeline.views import render_views
from trainer.engine.optimiser import build_optimizer
from trainer.losses.terms import weighted_sum
from trainer.models.hierarchical.student import I2PMAE, Plan
from trainer.models.tokens.masking import propagate, weight_logits
from trainer.models.tokens.saliency import top_saliency
from trainer.models.tokens.visible import Tokens

__all__ = ["Pretrain"]

_FULL_GRADIENTS = {
    "train__grad_mask_token": "mask_token",
    "train__grad_rec_head_3d_bias": "rec_head_3d.bias",
    "train__grad_first_conv_weight": "h_encoder.token_embed.0.first_conv.0.weight",
}
_FIRST_NORM = "h_encoder.token_embed.0.first_conv.1"


class Seen(NamedTuple):
    """Our teacher's view of the recorded clouds: its maps, and the moments of the images it saw, [B, V, 2]."""

    maps: TokenMaps
    moments: Tensor


class Pretrain(Section):
    name = "pretrain"
    title = "Pre-training model: teacher, masks, network, losses, gradients, a step"
    file = "model_pretrain.npz"

    def parts(self) -> dict[str, Part]:
        return {
            "groups": self._groups,
            "teacher": self._teacher_maps,
            "masks": self._masks,
            "evaluation-mode network": self._network,
            "training step": self._training,
            "evaluation feature": self._feature,
        }

    @cached_property
    def _arrays(self) -> Arrays:
        return self.recorded.arrays("model_pretrain")

    @cached_property
    def _points(self) -> Tensor:
        return self._arrays.tensor("pts", self.device)

    @cached_property
    def _seen(self) -> Seen:
        teacher = small_teacher(self.recorded, self.device)
        config = replace(
            self.settings.projection, image_side=teacher.image_side, patch_side=teacher.patch_side, points=0
        )
        images = render_views(self._points, config).images.unflatten(0, (len(self._points), -1)).flatten(2)
        maps = LiveTeacher(config, teacher)(self._points)
        return Seen(maps, torch.stack((images.mean(2), images.std(2)), dim=2))

    def _model(self) -> I2PMAE:
        """The model as recorded; a new one each time, because training changes it."""
        return small_student(self.recorded, self.settings, self.device)

    def _plan(self, model: I2PMAE) -> Plan:
        order = self._arrays.tensor("mask_ids", self.device)
        return model.plan(self._points, self._points, self._seen.maps, None, mask_order=order)

    def _groups(self) -> Iterator[Row]:
        levels, _ = self._model().plan_encoding(self._points)
        for i, level in enumerate(levels):
            yield self._arrays.check(f"centres of level {i}", f"center_l{i}", level.centres, "exact")
            yield self._arrays.check(f"neighbours of level {i}", f"idx_l{i}", level.members, "exact")

    def _teacher_maps(self) -> Iterator[Row]:
        maps, moments = self._seen
        side = round(maps.features.shape[2] ** 0.5)
        features = maps.features.transpose(2, 3).unflatten(3, (side, side))  # [B, V, C, side, side]
        check = self._arrays.check
        yield check("mean and spread of the images", "image_mean_std", _stacked(moments), "image moments")
        yield check("teacher features", "teacher_feats", _stacked(features), "teacher.features")
        yield check("teacher saliency", "teacher_sal", _stacked(maps.saliency), "teacher.attention")
        frozen = self.recorded.checkpoint("pretrain_ckpt.pth").teacher
        alone = self.recorded.checkpoint("teacher_openai.pt").entries
        yield same("names of the teacher inside the checkpoint", sorted(frozen), sorted(alone))
        if frozen.keys() == alone.keys():
            inside, beside = (torch.cat([one[name].flatten() for name in sorted(one)]) for one in (frozen, alone))
            yield compare("its values", inside, beside, "exact")

    def _masks(self) -> Iterator[Row]:
        model = self._model()
        plan = self._plan(model)
        saliency = top_saliency(self._seen.maps, plan.levels[-1].centres)
        chances = weight_logits(saliency, model.masking).softmax(1)
        yield self._arrays.check("saliency of top-level tokens", "spatial_sals", saliency, "saliency")
        yield self._arrays.check("drawing probabilities", "mask_probs", chances, "saliency")
        for i, tokens in enumerate(plan.tokens):
            yield self._arrays.check(f"mask of level {i}", f"mask_l{i}", ~tokens.visible, "exact")
        yield from self._leaks(plan)

    def _leaks(self, plan: Plan) -> Iterator[Row]:
        """Tokens that are visible although no visible token above has them: config.json lists the reference's."""
        notes = self.recorded.table("config")
        for i in range(len(plan.levels) - 1):
            above = plan.tokens[i + 1].visible
            needed = propagate(above, plan.levels[i : i + 2], token0_leak=False)[0]
            extra = (plan.tokens[i].visible & ~needed).nonzero().tolist()
            yield same(f"tokens of level {i} shown without need", extra, notes[f"pretrain_extra_visible_l{i}"])

    @torch.no_grad()
    def _network(self) -> Iterator[Row]:
        model = self._model().eval()
        plan = self._plan(model)
        prediction = model.network(plan, None)
        yield from self._encoded("evalbn__", plan.tokens, prediction.encoded)
        check = self._arrays.check
        yield check("decoder output", "evalbn__dec", prediction.decoded, "decoder")
        visible = plan.tokens[model.config.target_level].visible.flatten()
        if prediction.rec_3d is not None:
            rec_3d = _rows(prediction.rec_3d.flatten(1), ~visible)
            yield check("reconstructed neighbourhoods", "evalbn__rec_3d", rec_3d, "decoder")
        if prediction.rec_2d is not None:
            yield check("predicted 2D features", "evalbn__rec_2d", _rows(prediction.rec_2d, visible), "decoder")
        losses = model.losses(plan, prediction)
        yield check("3D loss, running statistics", "evalbn__loss_3d", losses["3d"].mean, "loss")
        yield check("2D loss, running statistics", "evalbn__loss_2d", losses["2d"].mean, "loss")

    def _training(self) -> Iterator[Row]:
        model = self._model().train()
        plan = self._plan(model)
        losses = model.losses(plan, model.network(plan, None))
        weighted_sum(losses).backward()
        arrays = self._arrays
        yield arrays.check("3D loss, batch statistics", "train__loss_3d", losses["3d"].mean, "loss")
        yield arrays.check("2D loss, batch statistics", "train__loss_2d", losses["2d"].mean, "loss")
        yield from settled(self._gradients(model), self._gradients_in_float64)
        yield from self._buffers(model)
        build_optimizer(model, self.settings.trainer).step()
        norms = np.array([value.detach().double().norm().item() for value in model.parameters()])
        recorded, gradients = arrays["train__param_norms_after_step"], arrays["train__grad_norms"]
        if norms.shape != recorded.shape:
            yield compare("parameter norms after an AdamW step", norms, recorded, "parameter norm")
            return
        what = "parameter norms after an AdamW step"
        yield from by_gradient(what, norms, recorded, gradients, "parameter norm", "parameter noise")

    def _gradients_in_float64(self) -> Iterator[Row]:
        model = self._model().train()
        plan = doubled(self._plan(model))
        model.double()
        weighted_sum(model.losses(plan, model.network(plan, None))).backward()
        yield from self._gradients(model)

    def _gradients(self, model: I2PMAE) -> Iterator[Row]:
        yield from gradient_norms(model, self._arrays, "param_names", "train__grad_norms")
        parameters = dict(model.named_parameters())
        for name, parameter in _FULL_GRADIENTS.items():
            yield self._arrays.check(f"gradient of {parameter}", name, parameters[parameter].grad, "gradient")

    def _buffers(self, model: I2PMAE) -> Iterator[Row]:
        buffers = {name: value for name, value in model.named_buffers() if not name.endswith("num_batches_tracked")}
        norms = [value.double().norm().item() for value in buffers.values()]
        check = self._arrays.check
        yield same("batch norm buffers' names, in order", list(buffers), names_of(self._arrays, "buffer_names"))
        yield check(
            "batch norm buffers' norms after the forward pass", "train__buffer_norms_after", norms, "buffer norm"
        )
        for kind in ("running_mean", "running_var"):
            what = f"{kind} of the first batch norm after it"
            yield check(what, f"train__bn0_{kind}_after", buffers[f"{_FIRST_NORM}.{kind}"], "buffer")

    @torch.no_grad()
    def _feature(self) -> Iterator[Row]:
        model = self._model().eval()
        levels, tokens = model.plan_encoding(self._points)
        feature = model.encode(self._points, "top")
        yield self._arrays.check("evaluation feature", "eval_feat", feature, "evaluation feature")
        for i, layout in enumerate(tokens):
            what = f"evaluation: mask of level {i}"
            yield self._arrays.check(what, f"eval__mask_l{i}", ~layout.visible, "exact")
        yield from self._encoded("eval__", tokens, model.h_encoder(self._points, levels, tokens, None))

    def _encoded(self, prefix: str, tokens: list[Tokens], encoded: list[Tensor]) -> Iterator[Row]:
        mode = "evaluation: " if prefix == "eval__" else ""
        for i, (layout, rows) in enumerate(zip(tokens, encoded, strict=True)):
            counts = layout.visible.sum(1, keepdim=True)
            valid = torch.arange(int(counts.max()), device=counts.device) < counts  # [B, L] whatever our layout is
            name = f"{prefix}enc_valid_l{i}"
            yield self._arrays.check(f"{mode}which places of level {i} hold tokens", name, valid, "exact")
            what, at = f"{mode}encoder, level {i}", self._arrays[name]
            yield self._arrays.check(what, f"{prefix}enc_l{i}", rows[layout.valid], "encoder", at=at)


def _rows(rows: Tensor, kept: Tensor) -> Tensor:
    """The rows of tokens in `kept` [B * G] bool; a packed layout has these rows only, a static one has all."""
    return rows[kept] if len(rows) == len(kept) else rows


def _stacked(values: Tensor) -> Tensor:
    """[B, V, ...] -> [V * B, ...], all of view 0 first."""
    return values.transpose(0, 1).flatten(0, 1)
