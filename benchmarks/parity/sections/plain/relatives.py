"""pointbert.npz, act.npz, recon.npz, pcp.npz, femae.npz: the relatives' encoders and classifiers."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.parity.compare import UNCOMPARED, Row, compare, same
from benchmarks.parity.plain_models import MEMBERS, relative_classifier, relative_encoder
from benchmarks.parity.quantities import doubled, gradient_norms, settled
from benchmarks.parity.recorded import Arrays
from benchmarks.parity.section import Part, Section
from benchmarks.parity.weights import checksum
from trainer.checkpoints.reference.convert import completed
from trainer.checkpoints.reference.family import our_name, recognise_family
from trainer.losses.reconstruction import chamfer_sum
from trainer.models.heads.classifier import accuracy, classification_loss
from trainer.models.heads.plain import PlainClassifier
from trainer.models.plain.encoder import Encoded, Groups, PlainEncoder, form_groups
from trainer.models.plain.student import PlainStudent
from trainer.models.tokens.masking import block_order

__all__ = ["RELATIVES"]


class Relative(Section):
    """One member's small models; the name in the folder is the section's."""

    not_here: ClassVar[tuple[str, ...]] = ()  # arrays of a pre-training that this project has no form of

    @property
    def file(self) -> str:  # type: ignore[override]
        return f"{self.name}.npz"

    def parts(self) -> dict[str, Part]:
        return {
            "names": self._names,
            "groups": self._groups,
            "encoder": self._encoder,
            "losses": self._losses,
            "classifier": self._classifier,
            "classifier in training": self._training,
        }

    @cached_property
    def _member(self) -> Any:
        return MEMBERS[self.name]

    @cached_property
    def _arrays(self) -> Arrays:
        return self.recorded.arrays(self.name)

    @cached_property
    def _points(self) -> Tensor:
        return self._arrays.tensor("pts", self.device)

    @cached_property
    def _pretrained(self) -> tuple[PlainEncoder, dict[str, Tensor]]:
        encoder, entries = relative_encoder(self._member, self.recorded, self.settings, self.device)
        return encoder.eval(), entries

    @cached_property
    def _tokens(self) -> Groups:
        config = self._pretrained[0].settings
        return form_groups(self._points, config.groups, config.neighbours, skip_near_origin=config.fps_skip_near_origin)

    def _hidden(self, name: str = "mask") -> Tensor:
        return self._arrays.tensor(name, self.device)

    def _model(self) -> PlainClassifier:
        return relative_classifier(self._member, self.recorded, self.settings, self.device)

    def _names(self) -> Iterator[Row]:
        """Recognised by its keys, taken, new and left over as by the official loader."""
        facts = self.recorded.table("family_layouts")[self.name]
        entries = self._pretrained[1]
        found = recognise_family(entries, "the recorded layout")
        yield same("recognised as", [None if found is None else found.member], [self._member.layout.name])
        yield compare(
            "checksum of the pre-training weights", checksum(entries.values()), facts["pretrain_checksum"], "checksum"
        )
        model = self._model()
        assert found is not None
        mine = set(model.state_dict())
        ours = {name.removeprefix("MAE_encoder.") for name in found.entries}
        prefix = facts["prefix"].removeprefix("module.")
        inner = [name.removeprefix(prefix) for name in entries if name.startswith(prefix)]
        taken = [name for name in inner if our_name(name) in ours & mine]  # both names of a tensor that has two
        yield same("taken from the checkpoint", sorted(taken), sorted(facts["taken"]))
        new = [name for name in mine if name not in ours and not name.endswith("num_batches_tracked")]
        yield same("left new", sorted(new), sorted(facts["new"]))

    def _groups(self) -> Iterator[Row]:
        groups, check = self._tokens, self._arrays.check
        yield check("sampled indices", "fps_idx", groups.chosen, "exact")
        yield check("neighbours as sets", "knn_set", groups.members.sort(2).values, "exact")
        yield check("centres", "center", groups.centres, "exact")

    @torch.no_grad()
    def _encoder(self) -> Iterator[Row]:
        encoder, _ = self._pretrained
        tokens = encoder.embed(self._tokens.neighbourhood)
        yield self._arrays.check("tokens of all groups", "pre_evalbn__tokens", tokens, "encoder")
        yield from self._encoded(encoder, tokens)

    def _encoded(self, encoder: PlainEncoder, tokens: Tensor) -> Iterator[Row]:
        encoded = self._visible(encoder, tokens, self._hidden())
        both = torch.cat((encoded.front, encoded.tokens), dim=1)
        yield self._arrays.check("encoder output", "pre_evalbn__enc", both, "encoder")

    def _visible(self, encoder: PlainEncoder, tokens: Tensor, hidden: Tensor, *, adapted: bool = True) -> Encoded:
        return encoder.transform(
            encoder.widened(_kept(tokens, ~hidden)), _kept(self._tokens.centres, ~hidden), None, adapted=adapted
        )

    def _losses(self) -> Iterator[Row]:
        for name in self.not_here:
            array = self._arrays[name]
            note = f"{self._member.layout.name}'s own pre-training is not here: its encoder and classifier are"
            yield Row(what=f"{self.file}: {name}", values=array.size, verdict=UNCOMPARED, note=note)

    def _student(self, entries: dict[str, Tensor] | None = None) -> PlainStudent:
        """The plain student that an import of the recorded pre-training weights makes."""
        sizes = self.recorded.sizes(self._member.sizes)
        found = recognise_family(entries or self._pretrained[1], "the recorded layout")
        assert found is not None
        config = replace(
            self._pretrained[0].settings,
            decoder_depth=sizes["decoder_depth"],
            decoder_heads=sizes["decoder_num_heads"],
        )
        masking = replace(self.settings.masking, ratio=sizes["mask_ratio"])
        student = PlainStudent(config, masking, teacher_channels=1)
        whole, _ = completed(found, student.state_dict(), {"model": config, "masking": masking})
        student.load_state_dict(whole.entries)
        return student.to(self.device)

    @torch.no_grad()
    def _classifier(self) -> Iterator[Row]:
        model, check = self._model().eval(), self._arrays.check
        label = self._arrays.tensor("label", self.device)
        plan = model.plan(self._points)
        encoded = model.encoded(plan)
        yield check("classifier: tokens", "fine__eval_tokens", model.embed(plan.groups.neighbourhood), "encoder")
        both = torch.cat((encoded.front, encoded.tokens), dim=1)
        yield check("classifier: encoder output", "fine__eval_norm", both, "encoder")
        logits = model(self._points)
        yield check("classifier: logits", "fine__eval_logits", logits, "full-size logits")
        loss = classification_loss(logits, label, smoothing=0.0)
        yield check("classifier: loss", "fine__eval_loss", loss, "loss")
        yield check("classifier: accuracy in per cent", "fine__eval_acc", 100 * accuracy(logits, label), "loss")
        yield from self._features(model, encoded, logits, label)

    def _features(self, model: PlainClassifier, encoded: Encoded, logits: Tensor, label: Tensor) -> Iterator[Row]:
        yield from ()

    def _training(self) -> Iterator[Row]:
        model, check = self._model().train(), self._arrays.check
        label = self._arrays.tensor("label", self.device)
        logits = model(self._points)
        loss = classification_loss(logits, label, smoothing=0.0)
        loss.backward()
        yield check("classifier: training logits", "fine__train_logits", logits, "training logits")
        yield check("classifier: training loss", "fine__train_loss", loss, "relative training loss of a head")
        yield from settled(self._gradients(model), self._in_float64)

    def _in_float64(self) -> Iterator[Row]:
        model = self._model().train()
        plan = doubled(model.plan(self._points))
        label = self._arrays.tensor("label", self.device)
        classification_loss(model.double().network(plan, None), label, smoothing=0.0).backward()
        yield from self._gradients(model)

    def _gradients(self, model: PlainClassifier) -> Iterator[Row]:
        for row in gradient_norms(model, self._arrays, "fine__param_names", "fine__train_grad_norms"):
            yield row.renamed(f"classifier: {row.what}")

    def _whole_head(self, encoder: PlainEncoder, entries: dict[str, Tensor]) -> Row:
        """The head of the class token with nothing masked, which the member's linear SVM sees: no part of ours."""
        nothing = torch.zeros_like(self._hidden())
        encoded = self._visible(encoder, encoder.embed(self._tokens.neighbourhood), nothing)
        found = _cls_head(encoded.front[:, 0], entries, self._member.layout.prefix)
        return self._arrays.check("its SVM's feature", "pre_evalbn__svm_feature", found, "encoder")


class PointBERT(Relative):
    name = "pointbert"
    title = "Point-BERT: encoder and classifier"

    def _encoded(self, encoder: PlainEncoder, tokens: Tensor) -> Iterator[Row]:
        _, entries = self._pretrained
        prefix, hidden = self._member.layout.prefix, self._hidden()
        mask = entries[f"{prefix}mask_token"].to(tokens.device)
        kept = torch.where(hidden[:, :, None], mask, encoder.widened(tokens))  # in place, and encoded like the others
        encoded = encoder.transform(kept, self._tokens.centres, None)
        both = torch.cat((encoded.front, encoded.tokens), dim=1)
        check = self._arrays.check
        yield check("encoder output, mask tokens in place", "pre_evalbn__enc", both, "encoder")
        head = _cls_head(encoded.front[:, 0], entries, prefix)
        yield check("head of the class token", "pre_evalbn__cls_head_masked", head, "encoder")
        lm = F.linear(encoded.tokens[hidden], entries[f"{prefix}lm_head.weight"], entries[f"{prefix}lm_head.bias"])
        yield check("token logits of masked positions", "pre_evalbn__lm_logits_masked", lm, "encoder")
        yield self._whole_head(encoder, entries)

    def _features(self, model: PlainClassifier, encoded: Encoded, logits: Tensor, label: Tensor) -> Iterator[Row]:
        classes = logits.shape[1]
        # 0.2 spread over the other classes
        smoothed = classification_loss(logits, label, smoothing=0.2 if classes > 1 else 0.0)
        name = "fine__eval_loss_label_smoothing"
        yield self._arrays.check("classifier: loss with label smoothing", name, smoothed, "loss")


class ACT(Relative):
    name = "act"
    title = "ACT: encoder and classifier"

    def _encoded(self, encoder: PlainEncoder, tokens: Tensor) -> Iterator[Row]:
        yield from super()._encoded(encoder, tokens)
        yield self._whole_head(encoder, self._pretrained[1])


class ReCon(Relative):
    name = "recon"
    title = "ReCon: encoder, reconstruction and classifier"

    @torch.no_grad()
    def _losses(self) -> Iterator[Row]:
        for mode, what in (("evalbn", "running statistics"), ("train", "batch statistics")):
            student = self._student().train(mode == "train")
            order = self._hidden().long().argsort(dim=1, stable=True)
            plan = student.plan(self._points, self._points, None, None, mask_order=order)
            loss = student.losses(plan, student.network(plan, None))["3d"].mean
            yield self._arrays.check(f"reconstruction loss, {what}", f"pre_{mode}__loss_mdm", loss, "loss")

    def _features(self, model: PlainClassifier, encoded: Encoded, logits: Tensor, label: Tensor) -> Iterator[Row]:
        rest = encoded.tokens
        found = torch.cat((encoded.front.max(1).values, rest.max(1).values + rest.mean(1)), dim=1)
        yield self._arrays.check("its SVM's feature", "svm_feature", found, "encoder")


class PCPMAE(Relative):
    name = "pcp"
    title = "PCP-MAE: encoder and classifier"
    not_here = (
        "pre_evalbn__enc_masked",
        "pre_evalbn__loss_chamfer",
        "pre_evalbn__loss_center_weighted",
        "pre_train__loss_chamfer",
        "pre_train__loss_center_weighted",
    )


class PointFEMAE(Relative):
    name = "femae"
    title = "Point-FEMAE: encoder, both reconstructions and classifier"

    def _encoded(self, encoder: PlainEncoder, tokens: Tensor) -> Iterator[Row]:
        block = self._visible(encoder, tokens, self._hidden("block_mask")).tokens
        rand = self._visible(encoder, tokens, self._hidden(), adapted=False).tokens
        check = self._arrays.check
        yield check("encoder output, block then random masks", "pre_evalbn__enc", torch.cat((block, rand)), "encoder")
        nothing = torch.zeros_like(self._hidden())
        whole = self._visible(encoder, tokens, nothing).tokens
        feature = torch.cat((whole.max(1).values, whole.mean(1)), dim=1)
        yield check("its evaluation feature", "pre_evalbn__eval_feature", feature, "encoder")
        G = self._hidden().shape[1]
        start = self._arrays.tensor("block_mask_start", self.device)
        order = block_order(self._tokens.centres, ((start.float() + 0.5) / G)[:, None].expand(-1, G))
        count = int(self._hidden("block_mask")[0].sum())
        mask = torch.zeros_like(order, dtype=torch.bool).scatter_(1, order[:, G - count :], True)
        yield check("block masks from their starts", "block_mask", mask, "exact")

    @torch.no_grad()
    def _losses(self) -> Iterator[Row]:
        entries = self._pretrained[1]
        swapped = {_other_branch(name): value for name, value in entries.items()}
        branches = {"block": (self._student(), "block_mask", True), "rand": (self._student(swapped), "mask", False)}
        for mode, what in (("evalbn", "running statistics"), ("train", "batch statistics")):
            for branch, (student, mask, adapted) in branches.items():
                student.train(mode == "train")
                hidden, encoder = self._hidden(mask), student.MAE_encoder
                tokens = encoder.embed(self._tokens.neighbourhood)
                seen = self._visible(encoder, tokens, hidden, adapted=adapted).tokens
                loss = _reconstruction(student, seen, self._tokens, hidden)
                words = {"block": "block masks", "rand": "random masks"}[branch]
                yield self._arrays.check(f"loss of {words}, {what}", f"pre_{mode}__loss_{branch}", loss, "loss")


RELATIVES = (PointBERT, ACT, ReCon, PCPMAE, PointFEMAE)


def _kept(x: Tensor, kept: Tensor) -> Tensor:
    """The tokens of [B, G, D] where [B, G] bool is True, as many in every sample: [B, L, D]."""
    return x[kept].view(x.shape[0], -1, x.shape[2])


def _cls_head(token: Tensor, entries: dict[str, Tensor], prefix: str) -> Tensor:
    """Linear, GELU, linear."""
    names = [f"{prefix}cls_head.{layer}" for layer in (0, 2)]
    first, second = ((entries[f"{name}.weight"], entries[f"{name}.bias"]) for name in names)
    return F.linear(F.gelu(F.linear(token, *first)), *second)


def _other_branch(name: str) -> str:
    if "_block" in name:
        return name.replace("_block", "_rand")
    return name.replace("_rand", "_block")


def _reconstruction(student: PlainStudent, seen: Tensor, groups: Groups, hidden: Tensor) -> Tensor:
    """The 3D loss of encoded visible tokens, by the student's decoder and head."""
    unseen = _kept(groups.centres, hidden)
    position = student.decoder_pos_embed(torch.cat((_kept(groups.centres, ~hidden), unseen), dim=1))
    mask = student.mask_token.expand(*unseen.shape[:2], -1)
    decoded = student.MAE_decoder(torch.cat((seen, mask), dim=1), position, None)[:, seen.shape[1] :]
    target = groups.neighbourhood[hidden]
    rec = student.increase_dim(decoded.flatten(0, 1)).view(target.shape)
    return chamfer_sum(rec, target, None) / (target.shape[0] * target.shape[1])
