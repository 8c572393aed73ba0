"""pointmae_pretrain.npz, pointmae_pretrain_ckpt.pth: Point-MAE's whole pre-training model at a small size."""

import random
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from benchmarks.parity.compare import Row, compare, same
from benchmarks.parity.plain_models import small_student
from benchmarks.parity.quantities import by_gradient, doubled, gradient_norms, names_of, settled
from benchmarks.parity.recorded import Arrays
from benchmarks.parity.section import Part, Section
from trainer.engine.optimiser import build_optimizer
from trainer.losses.terms import weighted_sum
from trainer.models.plain.student import PlainStudent, Plan
from trainer.models.tokens.masking import block_order

__all__ = ["PointMAEPretrain"]

_FULL_GRADIENTS = {
    "train__grad_mask_token": ("mask_token", "plain gradient"),
    "train__grad_increase_dim_bias": ("increase_dim.0.bias", "plain gradient"),
    "train__grad_first_conv_weight": ("MAE_encoder.encoder.first_conv.0.weight", "gradient"),
    "train__grad_pos_embed_0_weight": ("MAE_encoder.pos_embed.0.weight", "plain gradient"),
}
_FIRST_NORM = "MAE_encoder.encoder.first_conv.1"
_DISTANCES = {"cdl2": "squared", "cdl1": "root"}


class PointMAEPretrain(Section):
    name = "pointmae-pretrain"
    title = "Point-MAE's pre-training model: groups, masks, network, losses, gradients, a step"
    file = "pointmae_pretrain.npz"

    def parts(self) -> dict[str, Part]:
        return {
            "groups": self._groups,
            "masks": self._masks,
            "evaluation-mode network": self._network,
            "training step": self._training,
        }

    @cached_property
    def _arrays(self) -> Arrays:
        return self.recorded.arrays("pointmae_pretrain")

    @cached_property
    def _points(self) -> Tensor:
        return self._arrays.tensor("pts", self.device)

    def _model(self, loss: str = "cdl2") -> PlainStudent:
        """The model as recorded; a new one each time, because training changes it."""
        model = small_student(self.recorded, self.settings, self.device)
        # one loss is the preset's, so that a departure from it shows; the other is its opposite
        chosen = model.config.distance if loss == "cdl2" else _opposite(model.config.distance)
        model.config = replace(model.config, distance=chosen)
        return model

    def _plan(self, model: PlainStudent) -> Plan:
        order = self._arrays.tensor("mask", self.device).long().argsort(dim=1, stable=True)
        return model.plan(self._points, self._points, None, None, mask_order=order)

    def _groups(self) -> Iterator[Row]:
        groups, check = self._plan(self._model()).groups, self._arrays.check
        yield check("sampled indices", "fps_idx", groups.chosen, "exact")
        yield check("neighbours", "knn_idx", groups.members, "exact")
        yield check("centres", "center", groups.centres, "exact")
        yield check("members' coordinates", "neighborhood", groups.neighbourhood, "exact")

    def _masks(self) -> Iterator[Row]:
        model, arrays = self._model(), self._arrays
        plan = self._plan(model)
        G = model.config.groups
        hidden = torch.zeros(len(self._points), G, dtype=torch.bool).scatter_(1, plan.hidden.cpu(), True)
        yield arrays.check("injected mask", "mask", hidden, "exact")
        seeds = self.recorded.table("config")["mask_examples"]
        count = G - model.masking.visible(G)
        yield compare("tokens that a sample hides", count, seeds["masked"], "exact")
        drawn = np.random.RandomState(seeds["numpy_seed"])  # the reference's own generator; the count is ours
        rand = np.zeros((len(self._points), G), bool)
        for row in rand:
            row[G - count :] = True
            drawn.shuffle(row)
        yield arrays.check("random mask, drawn its way", "rand_mask_example", rand, "exact")
        starts = [random.Random(seeds["python_seed"])]
        first = [starts[0].randint(0, G - 1) for _ in self._points]
        yield arrays.check("tokens that blocks start at, drawn its way", "block_mask_start", first, "exact")
        at = torch.as_tensor(arrays["block_mask_start"].astype(np.float32))
        uniforms = ((at + 0.5) / G)[:, None].expand(-1, G).to(self.device)
        block = torch.zeros(len(self._points), G, dtype=torch.bool)
        block.scatter_(1, block_order(plan.groups.centres, uniforms)[:, G - count :].cpu(), True)
        yield arrays.check("block mask from there", "block_mask_example", block, "exact")

    @torch.no_grad()
    def _network(self) -> Iterator[Row]:
        model, check = self._model().eval(), self._arrays.check
        plan = self._plan(model)
        prediction = model.network(plan, None)
        yield check("tokens of all groups", "evalbn__tokens", prediction.embedded, "encoder")
        encoder, groups = model.MAE_encoder, plan.groups
        centres = groups.centres.gather(1, plan.visible[:, :, None].expand(-1, -1, 3))
        yield check("positions of visible tokens", "evalbn__pos_vis", encoder.positions(centres), "position")
        at = plan.visible[:, :, None].expand(-1, -1, prediction.embedded.shape[2])
        encoded = encoder.transform(encoder.widened(prediction.embedded.gather(1, at)), centres, None)
        yield check("after the first block", "evalbn__block0", encoded.blocks[0], "encoder")
        yield check("encoder output", "evalbn__enc", prediction.encoded, "encoder")
        yield check("decoder output", "evalbn__dec", prediction.decoded, "plain decoder")
        yield check("reconstructed neighbourhoods", "evalbn__rec", self._rec(prediction), "plain decoder")
        for loss in _DISTANCES:
            other = self._model(loss).eval()
            mean = other.losses(plan, prediction)["3d"].mean
            yield check(f"{loss}, running statistics", f"evalbn__loss_{loss}", mean, "loss")

    def _rec(self, prediction: object) -> Tensor:
        rec = prediction.rec_3d  # type: ignore[attr-defined]
        return rec.view(len(self._points), -1, *rec.shape[1:])

    def _training(self) -> Iterator[Row]:
        arrays = self._arrays
        for loss in _DISTANCES:
            model = self._model(loss).train()
            plan = self._plan(model)
            prediction = model.network(plan, None)
            losses = model.losses(plan, prediction)
            weighted_sum(losses).backward()
            yield arrays.check(f"{loss}, batch statistics", f"train__loss_{loss}", losses["3d"].mean, "loss")
            yield from settled(self._gradients(model, loss), lambda loss=loss: self._in_float64(loss))  # type: ignore[misc]
            if loss == "cdl1":
                continue
            yield arrays.check("tokens, batch statistics", "train__tokens", prediction.embedded, "encoder")
            yield arrays.check(
                "reconstructed neighbourhoods, batch statistics", "train__rec", self._rec(prediction), "plain decoder"
            )
            yield from self._buffers(model)
            build_optimizer(model, self.settings.trainer).step()
            norms = np.array([value.detach().double().norm().item() for value in model.parameters()])
            recorded, gradients = arrays["train__param_norms_after_step"], arrays["train__grad_norms_cdl2"]
            what = "parameter norms after an AdamW step"
            if norms.shape != recorded.shape:
                yield compare(what, norms, recorded, "parameter norm")
            else:
                yield from by_gradient(what, norms, recorded, gradients, "parameter norm", "parameter noise")

    def _in_float64(self, loss: str) -> Iterator[Row]:
        model = self._model(loss).train()
        plan = doubled(self._plan(model))
        model.double()
        weighted_sum(model.losses(plan, model.network(plan, None))).backward()
        yield from self._gradients(model, loss)

    def _gradients(self, model: PlainStudent, loss: str) -> Iterator[Row]:
        for row in gradient_norms(model, self._arrays, "param_names", f"train__grad_norms_{loss}"):
            yield row.renamed(f"{loss}: {row.what}")
        if loss == "cdl2":
            parameters = dict(model.named_parameters())
            for name, (parameter, tolerance) in _FULL_GRADIENTS.items():
                yield self._arrays.check(f"gradient of {parameter}", name, parameters[parameter].grad, tolerance)

    def _buffers(self, model: PlainStudent) -> Iterator[Row]:
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


def _opposite(distance: str) -> Literal["squared", "root"]:
    return "root" if distance == "squared" else "squared"
