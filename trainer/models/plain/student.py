"""The plain student: Point-MAE's masked autoencoder, which may also learn from the 2D teacher.

Every sample hides as many tokens as every other, so arrays need no padding and no shape depends on data.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cuda.backproject import backproject
from cuda.gather import gather
from cuda.token_maps import TokenMaps
from cuda.untraced import untraced
from trainer.losses.reconstruction import chamfer_root_sum, chamfer_sum, squared_error_sum
from trainer.losses.terms import COORDINATES, FEATURES, Losses, LossTerm, of_further
from trainer.models.config import MaskingConfig, PlainConfig
from trainer.models.further_heads import FurtherHeads
from trainer.models.guided_student import GuidedStudent
from trainer.models.layers.alignment_head import AlignmentHead
from trainer.models.layers.initialisation import initialise
from trainer.models.layers.pooling import FEATURES as FEATURE_NAMES
from trainer.models.layers.pooling import Feature, feature_columns, feature_width, pooled_feature
from trainer.models.layers.transformer import Blocks, Pointwise, PositionEmbedding, drop_path_chances
from trainer.models.plain.encoder import POSITION_HIDDEN, Encoded, Groups, PlainEncoder, form_groups
from trainer.models.random_inputs import Draws
from trainer.models.student import Further, HiddenGroups, PointFeatures, Said, Shown, TokenLevel
from trainer.models.tokens.masking import block_order, draw_order, weight_logits
from trainer.models.tokens.multi_mask import repeat
from trainer.models.tokens.saliency import top_saliency

__all__ = ["PlainStudent", "Plan", "Prediction"]

ENCODER, DECODER = "MAE_encoder.", "MAE_decoder."
HEADS = ("increase_dim.", "rec_head_2d", "align_head", "further_heads")


class Plan(NamedTuple):
    """One batch, ready for the network: a sample for each mask of each cloud. B is the samples', but in the first two.

    points     [B, N, 3] float32, the clouds in the student's frame
    groups     of the clouds
    visible    [B, V] int64 into axis G, ascending
    hidden     [B, M] int64 into axis G, ascending
    target_3d  [B * M, K, 3] float32, hidden tokens' neighbourhoods; None when off
    target_2d  [B * V, K * views * C] float32, the teacher's features at members of visible tokens; None when off
    further_2d the same of each further teacher
    """

    points: Tensor
    groups: Groups
    visible: Tensor
    hidden: Tensor
    target_3d: Tensor | None
    target_2d: Tensor | None
    further_2d: tuple[Tensor | None, ...] = ()


class Prediction(NamedTuple):
    """The network's outputs for a plan.

    embedded  [B, G, embed_width or width], every group's token before it is encoded; B clouds, below B samples
    encoded   [B, V, width], visible tokens, normed
    seen      [B, V, width], visible tokens after the decoder, normed
    decoded   [B, M, width], hidden ones
    rec_3d    [B * M, K, 3]; None when off
    rec_2d    [B * V, K * views * C]; None when off
    whole     [B, views * C] the answer of the global loss, not scaled; None without its head
    further   rec_2d and whole of each further teacher
    """

    embedded: Tensor
    encoded: Tensor
    seen: Tensor
    decoded: Tensor
    rec_3d: Tensor | None
    rec_2d: Tensor | None
    whole: Tensor | None = None
    further: tuple[Said, ...] = ()


class PlainDecoder(nn.Module):
    """Standard blocks and a norm; positions are added again before each block."""

    def __init__(self, config: PlainConfig):
        super().__init__()
        (chances,) = drop_path_chances((config.decoder_depth,), config.drop_path)
        self.blocks = Blocks(config.width, config.decoder_heads, config.mlp_ratio, chances).blocks
        self.norm = nn.LayerNorm(config.width)

    def forward(self, x: Tensor, position: Tensor, draws: Tensor | None) -> Tensor:
        """Decode x [B, L, D] at positions [B, L, D] -> [B, L, D], normed. draws [B, 2 * blocks] or None."""
        for i, block in enumerate(self.blocks):
            x = block(x + position, None, None if draws is None else draws[:, 2 * i : 2 * i + 2])
        return self.norm(x)


class PlainStudent(GuidedStudent):
    """The pre-training model. Parameter names are Point-MAE's.

    model             sizes and behaviour.
    masking           which tokens are hidden.
    teacher_channels  C, the width of the teacher's features.
    views             V.
    whole             with the head of the global loss (trainer.losses.alignment).
    further           teachers beside that one, each with heads of its own; geometry, masking and everything else is of
                      the first.

    A head whose target is off does not exist. Parameters that no loss reaches (the stream of the tokens in front, where
    the cloud's do not see it) do not require a gradient, so that DistributedDataParallel does not wait for one.

    Raises ValueError listing what is wrong with the settings. Source: Point-MAE (Pang et al. 2022, arXiv 2203.06604);
    the 2D and the global loss are the hierarchical student's.
    """

    def __init__(
        self,
        model: PlainConfig,
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
        self.config: PlainConfig = model
        self.masking = masking
        self.teacher_channels = teacher_channels
        self.views = views
        self.further = tuple(further)
        K, width = model.neighbours, model.width
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.MAE_encoder = PlainEncoder(model)
        self.decoder_pos_embed = PositionEmbedding(width, hidden=POSITION_HIDDEN)
        self.MAE_decoder = PlainDecoder(model)
        if model.targets != "2d":
            self.increase_dim = nn.Sequential(Pointwise(width, 3 * K))
        if model.targets != "3d":
            self.rec_head_2d = Pointwise(width, K * views * teacher_channels)
        self.align_head = AlignmentHead(width, views * teacher_channels) if whole else None
        self.further_heads = nn.ModuleList(
            FurtherHeads(teacher, decoded=width, members=K, top=width, features=model.predicts_features)
            for teacher in self.further
        )
        for name, value in self.named_parameters():
            # the decoder and the heads see the cloud's tokens alone; adapters come after the last block that is read
            if model.streams == "two" and ("_contrast." in name or name.startswith(_in_front(self))):
                value.requires_grad_(False)
        self.initialise()

    @property
    def features(self) -> dict[Feature, int]:
        """The evaluation features, with the number of values of each."""
        return {name: feature_width((self.config.width,), name) for name in FEATURE_NAMES}

    def feature_columns(self, feature: Feature, within: Feature) -> slice | None:
        """Return the columns of one feature in another: those of "top" in "levels"."""
        return feature_columns((self.config.width,), feature, within)

    def initialise(self, generator: torch.Generator | None = None) -> None:
        """Draw all weights anew by the configured rule, from `generator` (None: torch's global one)."""
        initialise(self, self.config.initialisation, generator, encoder=ENCODER, decoder=DECODER, last=HEADS)

    def encode(self, points: Tensor, feature: Feature = "levels") -> Tensor:
        """Encode each cloud to one vector, with nothing masked.

        points   [B, N, 3] float32, N at least config.least_points.
        feature  "levels": maximum, mean and standard deviation of each channel over the tokens; "top": the maximum.
        ->       [B, 3 * width] or [B, width] float32. Row i depends on cloud i alone, in evaluation mode.

        Raises ValueError for a shape, too few points, or another feature.
        """
        return pooled_feature([self.encode_tokens(points).tokens], [None], feature)

    def encode_tokens(self, points: Tensor) -> Encoded:
        """Encode every token of clouds [B, N, 3] -> `Encoded` with L = groups, in the order of sampling."""
        groups = self._groups(points)
        encoder = self.MAE_encoder
        return encoder.transform(encoder.widened(encoder.embed(groups.neighbourhood)), groups.centres, None)

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
        """Compute everything about a batch that is not learnt.

        points            [B, N, 3] float32, the cloud as the student sees it.
        points_canonical  [B, N, 3] float32, the same points in the frame the maps were made in.
        maps              the teacher's maps; may be None if neither the masking nor a target needs them.
        draws             random numbers for the masking, of B * M samples where each cloud gets M masks; may be None
                          where `mask_order` is given.
        further           the maps of each further teacher, in the frame of points_canonical; None for one whose
                          features are no target.
        mask_order        [B * M, G] int64, the order in which tokens are drawn to stay visible, instead of drawing
                          them.

        Raises ValueError for a missing argument, a shape, or a cloud with fewer points than groups.
        """
        config = self.config
        groups = self._groups(points)
        masks = self._check_arguments(points, points_canonical, maps, further, draws, mask_order)
        order = mask_order
        if order is None:
            assert draws is not None
            order = self._order(groups, points_canonical, maps, draws.mask, masks)
        seen = self.masking.visible(config.groups)
        visible, hidden = order[:, :seen].sort(1).values, order[:, seen:].sort(1).values
        target_3d = target_2d = None
        if config.targets != "2d":
            relative = _rows_of(groups.neighbourhood.flatten(2), hidden)  # [B, M, K * 3]
            target_3d = relative.view(-1, config.neighbours, 3)
        if config.targets != "3d":
            assert maps is not None
            target_2d = self._teacher_targets(maps, points_canonical, groups, visible)
        further_2d = tuple(
            None
            if said is None or not self.predicts_further(index)
            else self._teacher_targets(said, points_canonical, groups, visible)
            for index, said in enumerate(further)
        )
        return Plan(points, groups, visible, hidden, target_3d, target_2d, further_2d)

    def network(self, plan: Plan, drop_path: Tensor | None) -> Prediction:
        """Encode, decode, predict. drop_path [B, R] uniform numbers; ignored outside training mode."""
        if not self.training or self.config.drop_path == 0:
            drop_path = None
        split = self.config.encoder_branches
        encoder, groups = self.MAE_encoder, plan.groups
        embedded = encoder.embed(groups.neighbourhood)
        shown, unseen = _rows_of(groups.centres, plan.visible), _rows_of(groups.centres, plan.hidden)
        tokens = encoder.widened(_rows_of(embedded, plan.visible))
        encoded = encoder.transform(tokens, shown, None if drop_path is None else drop_path[:, :split]).tokens
        mask = self.mask_token.to(encoded.dtype).expand(*plan.hidden.shape, -1)
        position = self.decoder_pos_embed(torch.cat((shown, unseen), dim=1))
        decoded = self.MAE_decoder(
            torch.cat((encoded, mask), dim=1), position, None if drop_path is None else drop_path[:, split:]
        )
        seen, rest = decoded.split([plan.visible.shape[1], plan.hidden.shape[1]], dim=1)
        rec_3d = rec_2d = None
        if plan.target_3d is not None:
            rec_3d = self.increase_dim(rest.flatten(0, 1)).view(plan.target_3d.shape)
        if plan.target_2d is not None:
            rec_2d = self.rec_head_2d(seen.flatten(0, 1))
        whole = None if self.align_head is None else self.align_head(encoded)
        further = tuple(heads(seen.flatten(0, 1), encoded, None) for heads in self.further_heads)
        return Prediction(embedded, encoded, seen, rest, rec_3d, rec_2d, whole, further)

    def losses(self, plan: Plan, prediction: Prediction) -> Losses:
        """Compare a prediction with the plan's targets: "3d" and "2d", both always, and those of further teachers.

        The counts are of loss_counts.
        """
        sum_3d = sum_2d = prediction.encoded.new_zeros((), dtype=torch.float32)
        if plan.target_3d is not None and prediction.rec_3d is not None:
            if self.config.distance == "root":
                sum_3d = chamfer_root_sum(prediction.rec_3d, plan.target_3d)
            else:
                sum_3d = chamfer_sum(prediction.rec_3d, plan.target_3d, None)
        if plan.target_2d is not None and prediction.rec_2d is not None:
            sum_2d = squared_error_sum(prediction.rec_2d, plan.target_2d, None)
        counts = self.loss_counts(plan)
        losses = {COORDINATES: LossTerm(sum_3d, counts[COORDINATES]), FEATURES: LossTerm(sum_2d, counts[FEATURES])}
        losses |= self.further_losses(plan.further_2d, prediction.further, counts)
        return losses

    def loss_counts(self, plan: Plan) -> dict[str, Tensor]:
        """Count what the losses of a plan will be sums over, [] float32 each, before anything is computed.

        "3d"  points of hidden tokens' neighbourhoods: hidden tokens x K, one way.
        "2d"  predicted numbers: visible tokens x K x V x C; "2d_2" and so on of further teachers' features.
        """
        device = plan.visible.device

        def count(numbers: int) -> Tensor:
            return torch.tensor(float(numbers), device=device)

        hidden = 0 if plan.target_3d is None else plan.hidden.numel() * self.config.neighbours
        values = 0 if plan.target_2d is None else plan.target_2d.numel()
        counts = {COORDINATES: count(hidden), FEATURES: count(values)}
        for index, target in enumerate(plan.further_2d):
            if target is not None:
                counts[of_further(FEATURES, index)] = count(target.numel())
        return counts

    @torch.no_grad()
    def show(self, plan: Plan, prediction: Prediction) -> Shown:
        """Return the tokens, the hidden neighbourhoods and the features of visible tokens' members, each beside its
        prediction."""
        groups, K = plan.groups, self.config.neighbours
        B, V = plan.visible.shape
        centres = repeat(groups.centres, B // len(plan.points))
        visible = torch.zeros(centres.shape[:2], dtype=torch.bool, device=plan.visible.device)
        levels = [TokenLevel(centres, visible.scatter_(1, plan.visible, True))]
        batch = torch.arange(B, device=plan.visible.device)
        off = f"model.targets = {self.config.targets!r}"
        reasons = {}
        hidden = features = None
        if plan.target_3d is None or prediction.rec_3d is None:
            reasons["groups"] = f"no coordinates are predicted: {off}"
        else:
            centres = gather(centres, plan.hidden).reshape(-1, 1, 3)
            hidden = HiddenGroups(
                batch.repeat_interleave(plan.hidden.shape[1]),
                centres + plan.target_3d,
                centres + prediction.rec_3d.float(),
            )
        if plan.target_2d is None or prediction.rec_2d is None:
            reasons["features"] = f"no features are predicted: {off}"
        else:
            wide = (-1, self.views, self.teacher_channels)
            features = PointFeatures(
                batch.repeat_interleave(V * K),
                _rows_of(plan.points, self._members(groups, plan.visible)).flatten(0, 1),
                plan.target_2d.reshape(wide),
                prediction.rec_2d.float().reshape(wide),
            )
        return Shown(levels, hidden, features, reasons)

    def _members(self, groups: Groups, visible: Tensor) -> Tensor:
        """The points of visible tokens' groups, [B, V * K] int64 into axis N."""
        clouds, _, K = groups.members.shape
        of_visible = visible.view(clouds, -1, 1).expand(-1, -1, K)
        return groups.members.gather(1, of_visible).view(len(visible), -1)

    def _teacher_targets(self, maps: TokenMaps, points_canonical: Tensor, groups: Groups, visible: Tensor) -> Tensor:
        B, N, _ = points_canonical.shape
        members = self._members(groups, visible).view(B, -1)  # [B, masks * V * K]
        once = members.shape[1] >= N  # then every point is looked up once, which gives the same features
        wanted = points_canonical if once else gather(points_canonical, members)
        features = backproject(maps.features, wanted, maps.geometry, image_side=maps.image_side)
        if once:
            features = gather(features.flatten(2), members)
        return features.reshape(visible.numel(), -1)

    def _groups(self, points: Tensor) -> Groups:
        config = self.config
        return form_groups(points, config.groups, config.neighbours, skip_near_origin=config.fps_skip_near_origin)

    def _order(
        self, groups: Groups, points_canonical: Tensor, maps: TokenMaps | None, uniforms: Tensor, masks: int
    ) -> Tensor:
        if self.masking.mode == "block":
            return block_order(repeat(groups.centres, masks), uniforms)
        logits = uniforms.new_zeros(uniforms.shape)
        if self.masking.mode == "saliency":
            assert maps is not None
            saliency = top_saliency(maps, gather(points_canonical, groups.chosen))
            logits = repeat(weight_logits(saliency, self.masking), masks)
        return draw_order(logits, uniforms)

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
        if draws is None and mask_order is None:
            raise ValueError("no draws; expected Draws, or mask_order")
        return self.masks_of_each(points.shape[0], self.config.groups, draws, mask_order)


def _rows_of(values: Tensor, idx: Tensor) -> Tensor:
    """Take rows of clouds' arrays for their samples: [B, N, D] at [B * masks, L] -> [B * masks, L, D].

    The gradient of a row is summed over its cloud's samples in one order.
    """
    return gather(values, idx.view(len(values), -1)).view(*idx.shape, values.shape[2])


def _in_front(student: PlainStudent) -> tuple[str, ...]:
    """How the names of the tokens in front, and of their positions, begin."""
    return tuple(f"{ENCODER}{name}_{what}" for name in student.MAE_encoder.front for what in ("token", "pos"))
