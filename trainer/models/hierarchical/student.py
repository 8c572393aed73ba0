"""The student: a hierarchical masked autoencoder of point clouds that learns from 3D structure and a 2D teacher.

A forward pass has two parts. `plan` is geometry and targets: groups, visible tokens, their layout in arrays, what is to
be predicted; no gradient, and the only place where the host may have to wait for the device. `network` is all that is
learnt; given a plan it contains no data-dependent control flow.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cuda.token_maps import TokenMaps
from cuda.untraced import untraced
from trainer.losses.reconstruction import chamfer_sum, squared_error_sum
from trainer.losses.terms import COORDINATES, FEATURES, Losses, LossTerm, of_further
from trainer.models.config import MaskingConfig, ModelConfig
from trainer.models.further_heads import FurtherHeads
from trainer.models.guided_student import GuidedStudent
from trainer.models.hierarchical.decoder import Propagation, interpolation_weights
from trainer.models.hierarchical.encoder import Encoder
from trainer.models.hierarchical.feature_targets import feature_targets
from trainer.models.layers.alignment_head import AlignmentHead
from trainer.models.layers.initialisation import initialise
from trainer.models.layers.pooling import FEATURES as FEATURE_NAMES
from trainer.models.layers.pooling import Feature, feature_columns, feature_width, pooled_feature
from trainer.models.layers.transformer import Blocks, Pointwise, PositionEmbedding, drop_path_chances
from trainer.models.random_inputs import Draws
from trainer.models.student import Further, HiddenGroups, PointFeatures, Said, Shown, TokenLevel
from trainer.models.tokens.grouping import Level, gather, neighbourhoods, tokenise
from trainer.models.tokens.masking import block_order, draw_order, propagate, top_visible, weight_logits
from trainer.models.tokens.multi_mask import Shared, copies_of, repeat, seen_in_any, share
from trainer.models.tokens.saliency import top_saliency
from trainer.models.tokens.visible import Tokens, everything, hidden_rows, lay_out, select, spread

__all__ = ["I2PMAE", "Plan", "Prediction"]


class Plan(NamedTuple):
    """One batch, ready for the network: a sample for each mask of each cloud. B is the samples', but in `points`.

    points         [B, N, 3] float32, the clouds in the student's frame
    levels         the groups of each level, finest first
    tokens         the layout of each level
    interpolation  [B, G, H] float32 for each decoder stage after the first; empty when nothing is decoded
    hidden         [H] int64 rows of the hidden tokens of the target level, None for all, and their weights, both from
    hidden_weight  trainer.models.tokens.visible.hidden_rows; None when the 3D target is off
    target_3d      [H, K, 3] float32, the hidden tokens' neighbourhoods; None when off
    target_2d      [M, K * V * C] float32, the teacher's features at the members of visible tokens; None when off
    further_2d     the same of each further teacher
    shared         what the masks of a cloud share; None where each cloud has one
    """

    points: Tensor
    levels: list[Level]
    tokens: list[Tokens]
    interpolation: list[Tensor]
    hidden: Tensor | None
    hidden_weight: Tensor | None
    target_3d: Tensor | None
    target_2d: Tensor | None
    further_2d: tuple[Tensor | None, ...] = ()
    shared: Shared | None = None


class Prediction(NamedTuple):
    """The network's outputs for a plan.

    encoded  [B, L, D] a level, normed, padded
    decoded  [B, G, D], every token of the target level in index order, normed
    rec_3d   [H, K, 3] coordinates of hidden tokens' members relative to their centres; None when the target is off
    rec_2d   [M, K * V * C] features of visible tokens' members, views one after the other; None when off
    whole    [B, V * C] the answer of the global loss, not scaled; None without its head
    further  rec_2d and whole of each further teacher
    """

    encoded: list[Tensor]
    decoded: Tensor
    rec_3d: Tensor | None
    rec_2d: Tensor | None
    whole: Tensor | None = None
    further: tuple[Said, ...] = ()


class I2PMAE(GuidedStudent):
    """The pre-training model. Parameter names are the reference's.

    model             sizes and behaviour.
    masking           which tokens are hidden.
    teacher_channels  C, the width of the teacher's features.
    views             V.
    whole             with the head of the global loss (trainer.losses.alignment).
    further           teachers beside that one, each with heads of its own; geometry, masking and everything else is of
                      the first.

    A head whose target is off does not exist. Parameters that no loss reaches (the norms of levels the decoder does not
    read) do not require a gradient, so that DistributedDataParallel does not wait for one.

    Raises ValueError listing what is wrong with the settings. Source: I2P-MAE (Zhang et al. 2023, arXiv 2212.06785).
    """

    def __init__(
        self,
        model: ModelConfig,
        masking: MaskingConfig,
        *,
        teacher_channels: int,
        views: int = 3,
        whole: bool = False,
        further: Sequence[Further] = (),
    ):
        super().__init__(model, masking, teacher_channels=teacher_channels, views=views, whole=whole)
        problems = [f"model.{text}" for text in model.problems()] + [f"masking.{text}" for text in masking.problems()]
        if problems:
            raise ValueError("\n  ".join((f"{len(problems)} problems in the model's settings", *problems)))
        self.config: ModelConfig = model
        self.masking = masking
        self.teacher_channels = teacher_channels
        self.views = views
        self.further = tuple(further)
        widths = model.decoder_dims
        chances = drop_path_chances(model.decoder_depths, model.drop_path)
        self.mask_token = nn.Parameter(torch.zeros(1, widths[0]))
        self.h_encoder = Encoder(model)
        self.h_decoder = nn.ModuleList(
            Blocks(width, model.heads, model.mlp_ratio, chance) for width, chance in zip(widths, chances, strict=True)
        )
        self.decoder_pos_embeds = nn.ModuleList(PositionEmbedding(width) for width in widths)
        self.token_prop = nn.ModuleList(
            Propagation(model.encoder_dims[-1 - stage], widths[stage - 1], widths[stage], blocks)
            for stage, blocks in enumerate(model.decoder_up_blocks, start=1)
        )
        self.decoder_norm = nn.LayerNorm(widths[-1])
        K = model.neighbours[model.target_level]
        if model.targets != "2d":
            self.rec_head_3d = Pointwise(widths[-1], 3 * K)
        if model.targets != "3d":
            self.rec_head_2d = Pointwise(widths[-1], K * views * teacher_channels)
        self.align_head = AlignmentHead(model.encoder_dims[-1], views * teacher_channels) if whole else None
        self.further_heads = nn.ModuleList(
            FurtherHeads(
                teacher, decoded=widths[-1], members=K, top=model.encoder_dims[-1], features=model.predicts_features
            )
            for teacher in self.further
        )
        if model.merge_input == "raw":
            self.h_encoder.encoder_norms[: model.target_level].requires_grad_(False)
        self.initialise()

    @property
    def features(self) -> dict[Feature, int]:
        """The evaluation features, with the number of values of each."""
        return {name: feature_width(self.config.encoder_dims, name) for name in FEATURE_NAMES}

    def feature_columns(self, feature: Feature, within: Feature) -> slice | None:
        """Return the columns of one feature in another: those of "top" in "levels"."""
        return feature_columns(self.config.encoder_dims, feature, within)

    def initialise(self, generator: torch.Generator | None = None) -> None:
        """Reinitialise all weights by the configured rule, from `generator` (None: torch's global one)."""
        initialise(self, self.config.initialisation, generator)

    def forward(
        self,
        points: Tensor,
        points_canonical: Tensor,
        maps: TokenMaps | None,
        draws: Draws | None,
        further: Sequence[TokenMaps | None] = (),
        *,
        mask_order: Tensor | None = None,
    ) -> Losses:
        """Compute the losses of a batch.

        points            [B, N, 3] float32, the cloud as the student sees it.
        points_canonical  [B, N, 3] float32, the same points in the frame the maps were made in.
        maps              the teacher's maps; may be None if neither the masking nor a target needs them.
        draws             random numbers for the masking and drop path, of B * M samples where each cloud gets M masks;
                          may be None where `mask_order` is given and drop path is off (evaluation mode, or chance 0).
        further           the maps of each further teacher, in the frame of points_canonical; None for one whose
                          features are no target.
        mask_order        [B * M, G] int64, the order in which top-level tokens are drawn, instead of drawing them.

        Raises ValueError for a missing argument, a shape, or a cloud with fewer points than groups.
        """
        plan = self.plan(points, points_canonical, maps, draws, further, mask_order=mask_order)
        return self.losses(plan, self.network(plan, None if draws is None else draws.drop_path))

    def encode(self, points: Tensor, feature: Feature = "levels") -> Tensor:
        """Encode each cloud to one vector, with nothing masked.

        points   [B, N, 3] float32, N at least groups[0].
        feature  "levels": maximum, mean and standard deviation of each channel over the tokens of every level, finest
                 level first; "top": the maximum over the top level's, which published numbers use.
        ->       [B, 3 * sum(encoder_dims)] or [B, encoder_dims[-1]] float32. Row i depends on cloud i alone, in
                 evaluation mode; batch norms and drop path follow the module's mode.

        Raises ValueError for a shape, a cloud with fewer points than groups, or another feature.
        """
        levels, tokens = self.plan_encoding(points)
        encoded = self.h_encoder(points, levels, tokens, None)
        return pooled_feature(encoded, [here.valid if here.uneven else None for here in tokens], feature)

    @torch.no_grad()
    @untraced
    def plan_encoding(self, points: Tensor) -> tuple[list[Level], list[Tokens]]:
        """Compute groups and layout for an encoding in which nothing is masked."""
        self._check_points(points)
        levels, _ = tokenise(points, self.config)
        B = points.shape[0]
        if not self.config.eval_hide_unused:
            return levels, [everything(B, groups, points.device) for groups in self.config.groups]
        top = torch.ones(B, self.config.groups[-1], dtype=torch.bool, device=points.device)
        visible = propagate(top, levels, token0_leak=self.config.token0_leak)
        tokens = lay_out(visible[:-1], packed=self.config.layout == "packed")
        return levels, [*tokens, everything(B, self.config.groups[-1], points.device)]

    @torch.no_grad()
    @untraced
    def plan(
        self,
        points: Tensor,
        points_canonical: Tensor,
        maps: TokenMaps | None,
        draws: Draws | None,
        further: Sequence[TokenMaps | None] = (),
        *,
        mask_order: Tensor | None = None,
    ) -> Plan:
        """Compute everything about a batch that is not learnt. Arguments as in forward."""
        config = self.config
        self._check_points(points)
        masks = self._check_arguments(points, points_canonical, maps, further, draws, mask_order)
        levels, chosen = tokenise(points, config)
        centres_canonical = gather(points_canonical, chosen)  # [B, groups[0], 3]
        copies = [copies_of(level, masks) for level in levels]
        order = mask_order
        if order is None:
            assert draws is not None
            if self.masking.mode == "block":
                order = block_order(copies[-1].centres, draws.mask)
            else:
                order = draw_order(repeat(self._logits(centres_canonical, maps), masks), draws.mask)
        visible = top_visible(order, self.masking.visible(config.groups[-1]))
        shown = propagate(visible, copies, token0_leak=config.token0_leak, masks=masks)
        target, finest = config.target_level, shown[0]
        # of the finest level and of the one that targets are looked up on: a cloud's tokens that any of its masks shows
        common = [] if masks == 1 else [seen_in_any(some, masks) for some in (finest, shown[target - 1])]
        tokens = lay_out([*shown, *common], packed=config.layout == "packed")
        shared = None if masks == 1 else share(levels[0], masks, tokens[-2], tokens[0])
        below = tokens[target - 1 if masks == 1 else -1]
        tokens = tokens[: config.levels]
        stages = range(1, len(config.decoder_dims))
        interpolation = [
            repeat(
                interpolation_weights(
                    levels[-1 - stage].centres, levels[-stage].centres, expanded=config.interpolation == "expanded"
                ),
                masks,
            )
            for stage in stages
        ]
        here = tokens[target]
        hidden = hidden_weight = target_3d = target_2d = None
        if config.targets != "2d":
            hidden, hidden_weight = hidden_rows(here)
            target_3d = select(repeat(neighbourhoods(levels[target - 1].centres, levels[target]), masks), hidden)

        def features_of(said: TokenMaps) -> Tensor:
            return feature_targets(said, centres_canonical, levels[target], here, below, masks=masks)

        if config.targets != "3d":
            assert maps is not None
            target_2d = features_of(maps)
        further_2d = tuple(
            None if said is None or not self.predicts_further(index) else features_of(said)
            for index, said in enumerate(further)
        )
        return Plan(
            points, copies, tokens, interpolation, hidden, hidden_weight, target_3d, target_2d, further_2d, shared
        )

    def network(self, plan: Plan, drop_path: Tensor | None) -> Prediction:
        """Encode, decode, predict. drop_path [B, R] uniform numbers; ignored outside training mode."""
        if not self.training or self.config.drop_path == 0:
            drop_path = None
        split = 2 * sum(self.config.encoder_depths)
        encoded = self.h_encoder(
            plan.points, plan.levels, plan.tokens, None if drop_path is None else drop_path[:, :split], plan.shared
        )
        decoded = self._decode(plan, encoded, None if drop_path is None else drop_path[:, split:])
        target = self.config.target_level
        rec_3d = rec_2d = None
        if plan.target_3d is not None:
            rec_3d = self.rec_head_3d(select(decoded, plan.hidden)).view(plan.target_3d.shape)
        if plan.target_2d is not None:
            rec_2d = self.rec_head_2d(select(decoded, plan.tokens[target].rows))
        top = plan.tokens[-1]
        valid = top.valid if top.uneven else None
        whole = None if self.align_head is None else self.align_head(encoded[-1], valid)
        further: tuple[Said, ...] = ()
        if self.further:
            seen = select(decoded, plan.tokens[target].rows)
            further = tuple(heads(seen, encoded[-1], valid) for heads in self.further_heads)
        return Prediction(encoded, decoded, rec_3d, rec_2d, whole, further)

    def losses(self, plan: Plan, prediction: Prediction) -> Losses:
        """Compare a prediction with the plan's targets: "3d" and "2d", both always, and those of further teachers.

        The counts are of loss_counts.
        """
        sum_3d = sum_2d = prediction.decoded.new_zeros((), dtype=torch.float32)
        if plan.target_3d is not None and prediction.rec_3d is not None:
            sum_3d = chamfer_sum(prediction.rec_3d, plan.target_3d, plan.hidden_weight)
        weight = plan.tokens[self.config.target_level].weight
        if plan.target_2d is not None and prediction.rec_2d is not None:
            sum_2d = squared_error_sum(prediction.rec_2d, plan.target_2d, weight)
        counts = self.loss_counts(plan)
        losses = {
            COORDINATES: LossTerm(sum_3d, counts[COORDINATES]),
            FEATURES: LossTerm(sum_2d, counts[FEATURES]),
        }
        losses |= self.further_losses(plan.further_2d, prediction.further, counts, weight)
        return losses

    def loss_counts(self, plan: Plan) -> dict[str, Tensor]:
        """Count what the losses of a plan will be sums over, [] float32 each, before anything is computed.

        "3d"  points of hidden tokens' neighbourhoods: hidden tokens x K, one way.
        "2d"  predicted numbers: visible tokens x K x V x C; "2d_2" and so on of further teachers' features.
        """
        level = self.config.target_level
        K = self.config.neighbours[level]
        visible = plan.tokens[level].visible
        seen = visible.sum().float()
        hidden = (visible.numel() - seen) * K if plan.target_3d is not None else torch.zeros_like(seen)
        values = seen * plan.target_2d.shape[1] if plan.target_2d is not None else torch.zeros_like(seen)
        counts = {COORDINATES: hidden, FEATURES: values}
        for index, target in enumerate(plan.further_2d):
            if target is not None:
                counts[of_further(FEATURES, index)] = seen * target.shape[1]
        return counts

    @torch.no_grad()
    def show(self, plan: Plan, prediction: Prediction) -> Shown:
        """Return every level's tokens, the hidden neighbourhoods of the target level and the features of visible
        tokens' members, each beside its prediction."""
        levels = [
            TokenLevel(level.centres, tokens.visible) for level, tokens in zip(plan.levels, plan.tokens, strict=True)
        ]
        level, tokens = plan.levels[self.config.target_level], plan.tokens[self.config.target_level]
        B, G, _ = level.centres.shape
        off = f"model.targets = {self.config.targets!r}"
        reasons = {}
        groups = features = None
        if plan.target_3d is None or prediction.rec_3d is None:
            reasons["groups"] = f"no coordinates are predicted: {off}"
        else:
            rows = torch.nonzero(~tokens.visible.reshape(-1))[:, 0]
            centres = level.centres.reshape(B * G, 1, 3)[rows]
            kept = rows if plan.hidden is None else slice(None)  # the static layout computes every token
            groups = HiddenGroups(
                torch.div(rows, G, rounding_mode="floor"),
                centres + plan.target_3d[kept],
                centres + prediction.rec_3d.float()[kept],
            )
        if plan.target_2d is None or prediction.rec_2d is None:
            reasons["features"] = f"no features are predicted: {off}"
        else:
            rows = torch.nonzero(tokens.visible.reshape(-1))[:, 0]
            kept = rows if tokens.rows is None else slice(None)
            sample = torch.div(rows, G, rounding_mode="floor")
            members = level.members.reshape(B * G, -1)[rows]  # [M, K] into the level below
            below = plan.levels[self.config.target_level - 1].centres
            wide = (-1, self.views, self.teacher_channels)
            features = PointFeatures(
                sample.repeat_interleave(members.shape[1]),
                below[sample[:, None], members].flatten(0, 1),
                plan.target_2d[kept].reshape(wide),
                prediction.rec_2d.float()[kept].reshape(wide),
            )
        return Shown(levels, groups, features, reasons)

    def _decode(self, plan: Plan, encoded: list[Tensor], drop_path: Tensor | None) -> Tensor:
        # Tokens keep their index order; the reference's [visible; hidden] gives the same up to the order of sums.
        x = spread(encoded[-1], plan.tokens[-1], self.mask_token)  # [B, G, D]
        masks = 1 if plan.shared is None else plan.shared.masks
        first = 0
        for stage, blocks in enumerate(self.h_decoder):
            level = plan.levels[-1 - stage]
            if stage > 0:
                seen = spread(encoded[-1 - stage], plan.tokens[-1 - stage], x.new_zeros(()))
                x = self.token_prop[stage - 1](seen, x, plan.interpolation[stage - 1])
            last = first + 2 * self.config.decoder_depths[stage]
            position = repeat(self.decoder_pos_embeds[stage](level.centres[::masks]), masks)
            x = blocks(x, position, None, None if drop_path is None else drop_path[:, first:last])
            first = last
        return self.decoder_norm(x)

    def _logits(self, centres_canonical: Tensor, maps: TokenMaps | None) -> Tensor:
        top = centres_canonical[:, : self.config.groups[-1]]
        if self.masking.mode == "random":
            return top.new_zeros(top.shape[:2])
        assert maps is not None
        return weight_logits(top_saliency(maps, top), self.masking)

    def _check_points(self, points: Tensor) -> None:
        if points.ndim != 3 or points.shape[2] != 3:
            raise ValueError(f"points have shape {tuple(points.shape)}; expected [B, N, 3]")
        needed = self.config.least_points
        if points.shape[1] < needed:
            raise ValueError(
                f"clouds have {points.shape[1]} points; a model of {self.config.groups[0]} groups of "
                f"{self.config.neighbours[0]} neighbours needs at least {needed}. Use more points or smaller "
                "model.groups."
            )

    def _check_arguments(
        self,
        points: Tensor,
        points_canonical: Tensor,
        maps: TokenMaps | None,
        further: Sequence[TokenMaps | None],
        draws: Draws | None,
        mask_order: Tensor | None,
    ) -> int:
        """Check the arguments of a plan; -> the masks of each cloud."""
        self.check_maps(points, points_canonical, maps, further, ordered=mask_order is not None)
        if draws is None and (mask_order is None or (self.training and self.config.drop_path > 0)):
            raise ValueError("no draws; expected Draws, or mask_order with drop path off (evaluation mode or chance 0)")
        return self.masks_of_each(points.shape[0], self.config.groups[-1], draws, mask_order)
