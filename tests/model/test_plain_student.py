"""The plain student against its slow definition in float64, at sizes that all differ; its masks, targets and laws."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import leaky_relu

from cuda.backproject import backproject
from tests.support.models import tiny_batch
from tests.support.plain_student import (
    CHANNELS,
    PLAIN,
    RELATIVES,
    defined_chamfer,
    defined_decoding,
    defined_encoding,
    defined_groups,
    plain_student,
)
from trainer.losses.terms import weighted_sum
from trainer.models.config import MaskingConfig
from trainer.models.plain.encoder import form_groups, sines
from trainer.models.plain.student import PlainStudent
from trainer.models.random_inputs import Draws
from trainer.models.student import Further
from trainer.models.tokens.masking import block_order

POINTS, MAPS = tiny_batch(seed=3, batch=5, points=61)
HIDDEN = 7  # of 13, at ratio 0.6


def draws_for(model, epoch=0):
    return Draws.for_records(range(len(POINTS)), model.config, seed=1, epoch=epoch)


def plan_of(model, **arguments):
    return model.plan(POINTS, POINTS, MAPS, draws_for(model), **arguments)


def doubled(model, prefix=""):
    return {
        name.removeprefix(prefix): value.double()
        for name, value in model.state_dict().items()
        if name.startswith(prefix)
    }


@pytest.mark.parametrize("distance", ["squared", "root"])
def test_network_and_3d_loss_are_as_defined(distance):
    model = plain_student(seed=1, distance=distance, targets="3d").eval()
    plan = plan_of(model)
    centres, hoods = defined_groups(POINTS, 13, 7)
    torch.testing.assert_close(plan.groups.centres.double(), centres, rtol=0, atol=1e-7)
    pick = torch.arange(len(POINTS))[:, None]
    shown, unseen = centres[pick, plan.visible], centres[pick, plan.hidden]
    encoded = defined_encoding(doubled(model, "MAE_encoder."), shown, hoods[pick, plan.visible], model.config)
    decoded = defined_decoding(doubled(model), encoded, shown, unseen, model.config)
    weight = doubled(model)["increase_dim.0.weight"][:, :, 0]
    rec = decoded[:, -HIDDEN:] @ weight.T + doubled(model)["increase_dim.0.bias"]
    with torch.no_grad():
        prediction = model.network(plan, None)
        losses = model.losses(plan, prediction)
    torch.testing.assert_close(prediction.encoded.double(), encoded, rtol=0, atol=2e-5)
    torch.testing.assert_close(torch.cat((prediction.seen, prediction.decoded), 1).double(), decoded, rtol=0, atol=2e-5)
    torch.testing.assert_close(prediction.rec_3d.double(), rec.reshape(-1, 7, 3), rtol=0, atol=2e-5)
    target = hoods[pick, plan.hidden].reshape(-1, 7, 3)
    expected = defined_chamfer(rec.reshape(-1, 7, 3), target, root=distance == "root")
    assert losses["3d"].mean.item() == pytest.approx(expected, rel=1e-5)
    assert losses["2d"].mean.item() == 0


def test_the_2d_target_is_the_teachers_features_at_members_of_visible_tokens():
    model = plain_student(targets="2d")
    frame = POINTS.flip(2)  # the canonical cloud is another one
    plan = model.plan(POINTS, frame, MAPS, draws_for(model))
    assert plan.target_3d is None
    everywhere = backproject(MAPS.features, frame, MAPS.geometry, image_side=MAPS.image_side)  # [B, N, V, C]
    groups = form_groups(POINTS, 13, 7, skip_near_origin=False)
    expected = [
        everywhere[sample, groups.members[sample, token]].flatten()
        for sample in range(len(POINTS))
        for token in plan.visible[sample].tolist()
    ]
    torch.testing.assert_close(plan.target_2d, torch.stack(expected))
    prediction = model.network(plan, draws_for(model).drop_path)
    assert prediction.rec_3d is None
    assert prediction.rec_2d.shape == (5 * 6, 7 * 3 * CHANNELS)
    error = (prediction.rec_2d - torch.stack(expected)).square().mean()
    assert model.losses(plan, prediction)["2d"].mean.item() == pytest.approx(error.item(), rel=1e-5)
    assert not hasattr(model, "increase_dim")


@pytest.mark.parametrize("mode", ["random", "block", "saliency"])
@pytest.mark.parametrize("ratio", [0.0, 0.6, 0.93])
def test_every_sample_hides_as_many(mode, ratio):
    model = plain_student(masking=MaskingConfig(mode=mode, ratio=ratio))
    plan = plan_of(model)
    assert plan.visible.shape == (5, 13 - int(ratio * 13))
    both = torch.cat((plan.visible, plan.hidden), dim=1)
    assert (both.sort(1).values == torch.arange(13)).all()
    for part in (plan.visible, plan.hidden):
        assert (part.diff(dim=1) > 0).all()
    losses = model.losses(plan, model.network(plan, draws_for(model).drop_path))
    assert losses["3d"].count == 5 * int(ratio * 13) * 7
    assert losses["2d"].count == plan.target_2d.numel()
    weighted_sum(losses).backward()
    assert all(value.grad is not None and value.grad.isfinite().all() for value in model.parameters())


def test_a_block_is_the_nearest_to_a_token_drawn_evenly():
    centres = POINTS[:1, :9].expand(4000, -1, -1)
    order = block_order(centres, torch.rand(4000, 9, generator=torch.Generator().manual_seed(2)))
    starts = order[:, -1]
    counts = torch.bincount(starts, minlength=9)
    assert counts.min() > 4000 / 9 * 0.8
    assert counts.max() < 4000 / 9 * 1.2
    apart = torch.cdist(centres[0], centres[0])
    for start in range(9):
        of_start = order[starts == start]
        assert (of_start == of_start[0]).all()
        assert (apart[start, of_start[0]].diff() <= 0).all()  # farthest first
    ends = block_order(centres[:2], torch.tensor([[1e-7] * 9, [1 - 6e-8] * 9]))
    assert ends[:, -1].tolist() == [0, 8]


def test_salient_tokens_stay_visible_more_often():
    model = plain_student(masking=MaskingConfig(ratio=0.6, saliency="standardised", temperature=0.2))
    maps = MAPS._replace(saliency=torch.linspace(0, 1, 16).expand(5, 3, 16).contiguous())
    from trainer.models.tokens.saliency import top_saliency

    shares = torch.zeros(5, 13)
    for epoch in range(60):
        plan = model.plan(POINTS, POINTS, maps, draws_for(model, epoch))
        shares.scatter_add_(1, plan.visible, torch.ones(plan.visible.shape))
    groups = form_groups(POINTS, 13, 7, skip_near_origin=False)
    salient = top_saliency(maps, groups.centres)
    for sample in range(5):
        assert torch.corrcoef(torch.stack((salient[sample], shares[sample])))[0, 1] > 0.8


@pytest.mark.parametrize("relative", RELATIVES)
def test_a_cloud_is_encoded_by_itself_and_every_weight_that_is_trained_gets_a_gradient(relative):
    model = plain_student(whole=True, **RELATIVES[relative])
    plan = plan_of(model)
    prediction = model.network(plan, draws_for(model).drop_path)
    (weighted_sum(model.losses(plan, prediction)) + prediction.whole.square().mean()).backward()
    for name, value in model.named_parameters():
        assert (value.grad is not None) == value.requires_grad, name
        assert not value.requires_grad or value.grad.isfinite().all(), name
    still = [name for name, value in model.named_parameters() if not value.requires_grad]
    assert bool(still) == (relative == "ReCon")
    model.eval()
    with torch.no_grad():
        for feature, width in model.features.items():
            together = model.encode(POINTS, feature)
            assert together.shape == (5, width)
            torch.testing.assert_close(together[2:3], model.encode(POINTS[2:3], feature), rtol=0, atol=1e-5)
        mixed = POINTS[:, torch.cat((torch.tensor([0]), torch.randperm(60) + 1))]  # the first point leads the sampling
        torch.testing.assert_close(model.encode(mixed), model.encode(POINTS), rtol=0, atol=1e-4)


def test_what_stands_in_front_changes_the_others_in_one_stream_and_not_in_two():
    for relative, sees in (("ACT", True), ("ReCon", False)):
        model = plain_student(**RELATIVES[relative]).eval()
        with torch.no_grad():
            before = model.encode_tokens(POINTS)
            model.MAE_encoder.cls_token.add_(torch.randn(model.MAE_encoder.cls_token.shape))
            after = model.encode_tokens(POINTS)
        assert (before.front - after.front).abs().max() > 1e-3
        assert bool((before.tokens - after.tokens).abs().max() > 1e-4) == sees


def test_an_adapter_sees_its_nearest_tokens_alone_and_can_be_left_out():
    from trainer.models.plain.blocks import Adapter, Graph

    torch.manual_seed(0)
    adapter = Adapter(10, 4).eval()
    tokens, members = torch.randn(2, 6, 10), torch.randint(0, 6, (2, 6, 3))
    found = adapter(tokens, Graph(members))
    w = adapter.state_dict()
    for b in range(2):
        for token in range(6):
            edges = [torch.cat((tokens[b, j] - tokens[b, token], tokens[b, token])) for j in members[b, token]]
            fresh = (1 + 1e-5) ** -0.5  # what a new batch norm multiplies by
            inner = torch.stack([leaky_relu(w["conv1.0.weight"][:, :, 0, 0] @ edge * fresh, 0.2) for edge in edges])
            outer = leaky_relu(w["conv2.0.weight"][:, :, 0] @ inner.max(0).values * fresh, 0.2)
            torch.testing.assert_close(found[b, token], outer, rtol=0, atol=1e-6)
    model = plain_student(**RELATIVES["Point-FEMAE"]).eval()
    groups = form_groups(POINTS, 13, 7, skip_near_origin=False)
    with torch.no_grad():
        tokens = model.MAE_encoder.embed(groups.neighbourhood)
        plain = model.MAE_encoder.transform(tokens, groups.centres, None, adapted=False).tokens
        standard = plain_student().eval()
        standard.load_state_dict({k: v for k, v in model.state_dict().items() if ".cls" not in k})
        torch.testing.assert_close(plain, standard.encode_tokens(POINTS).tokens)
        assert (plain - model.encode_tokens(POINTS).tokens).abs().max() > 1e-3


def test_sines_are_as_defined():
    found = sines(torch.tensor([[0.3, -1.2, 0.7]]), 12)[0]
    expected = []
    for value in (0.3, -1.2, 0.7):
        angles = [torch.tensor(value / 10000 ** (j / 2)) for j in range(2)]
        expected += [a.sin() for a in angles] + [a.cos() for a in angles]
    torch.testing.assert_close(found, torch.stack(expected))


def test_first_weights_do_not_depend_on_the_heads_beside_them():
    first = plain_student(seed=4, targets="3d").state_dict()
    for second in (plain_student(seed=4, whole=True).state_dict(), plain_student(seed=4, targets="2d").state_dict()):
        both = {name for name in first if name in second and not name.endswith(("running_mean", "running_var"))}
        assert len(both) > 50
        assert [name for name in both if not torch.equal(first[name], second[name])] == []
    assert plain_student(seed=5).mask_token.std().item() == pytest.approx(0.02, rel=0.5)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"heads": 4}, "width = 30 is not a multiple of heads = 4"),
        ({"decoder_heads": 7}, "width = 30 is not a multiple of decoder_heads = 7"),
        ({"position": "sines", "width": 20}, "not a multiple of 6"),
        ({"streams": "two"}, "has no tokens for the second"),
        ({"adapters": (1, 3)}, r"not blocks in ascending order, 0\.\.2"),
        ({"groups": 1}, "fewer than 2"),
        ({"adapters": (1,), "front": "three", "streams": "two"}, "no encoder has both"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        PlainStudent(replace(PLAIN, **settings), MaskingConfig(), teacher_channels=CHANNELS)


def test_what_is_missing_is_named():
    model = plain_student()
    draws = draws_for(model)
    with pytest.raises(ValueError, match="no teacher maps"):
        model.plan(POINTS, POINTS, None, draws)
    with pytest.raises(ValueError, match="clouds of 12 points for a model of 13 groups of 7"):
        model.plan(POINTS[:, :12], POINTS[:, :12], MAPS, draws)
    with pytest.raises(ValueError, match="no draws"):
        model.plan(POINTS, POINTS, MAPS, None)
    with pytest.raises(ValueError, match=r"expected \[5, 13\]"):
        model.plan(POINTS, POINTS, MAPS, None, mask_order=torch.zeros(5, 12, dtype=torch.long))
    with pytest.raises(ValueError, match="4 channels; expected 5, 3, 6"):
        model.plan(POINTS, POINTS, MAPS._replace(features=MAPS.features[..., :4]), draws)
    with pytest.raises(ValueError, match="feature is 'middle'"):
        model.encode(POINTS, "middle")


def test_a_further_teacher_has_losses_of_its_own():
    more = Further(channels=4, views=3, features=True, whole=True)
    unseen = Further(channels=3, views=3, features=False, whole=True)
    model = PlainStudent(PLAIN, MaskingConfig(ratio=0.6), teacher_channels=CHANNELS, further=(more, unseen))
    other = MAPS._replace(features=torch.randn(5, 3, 16, 4))
    plan = model.plan(POINTS, POINTS, MAPS, draws_for(model), (other, None))
    prediction = model.network(plan, draws_for(model).drop_path)
    losses = model.losses(plan, prediction)
    assert list(losses) == list(model.loss_counts(plan)) == ["3d", "2d", "2d_2"]
    alone = plain_student(targets="2d")
    alone.teacher_channels = 4
    expected = alone.plan(POINTS, POINTS, other, draws_for(model), mask_order=_order(plan)).target_2d
    torch.testing.assert_close(plan.further_2d[0], expected)
    said = prediction.further[0].features
    assert losses["2d_2"].mean.item() == pytest.approx((said - expected).square().mean().item(), rel=1e-5)
    assert [said.whole.shape[1] for said in prediction.further] == [12, 9]
    with pytest.raises(ValueError, match=r"features of teacher 2 have shapes, views and channels None"):
        model.plan(POINTS, POINTS, MAPS, draws_for(model), (None, None))
    with pytest.raises(ValueError, match="maps of 1 further teachers; the model was made for 2"):
        model.plan(POINTS, POINTS, MAPS, draws_for(model), (other,))


def _order(plan):
    return torch.cat((plan.visible, plan.hidden), dim=1)


def test_what_it_shows_are_its_targets_and_predictions_where_they_are():
    model = plain_student().eval()
    plan = plan_of(model)
    prediction = model.network(plan, None)
    shown = model.show(plan, prediction)
    assert shown.reasons == {}
    assert shown.levels[0].visible.sum(1).tolist() == [6] * 5
    assert (shown.levels[0].visible.nonzero()[:, 1].view(5, 6) == plan.visible).all()
    cloud = POINTS[shown.groups.sample]  # [H, N, 3]
    assert torch.cdist(shown.groups.truth.double(), cloud.double()).amin(2).max() < 1e-6  # points of the very cloud
    centre = shown.groups.truth[:, 0]
    torch.testing.assert_close(shown.groups.predicted - centre[:, None], prediction.rec_3d, rtol=0, atol=1e-6)
    at = (POINTS[shown.features.sample] - shown.features.points[:, None]).norm(dim=2).argmin(1)
    everywhere = backproject(MAPS.features, POINTS, MAPS.geometry, image_side=MAPS.image_side)
    torch.testing.assert_close(shown.features.truth, everywhere[shown.features.sample, at])
    assert shown.features.predicted.shape == shown.features.truth.shape == (5 * 6 * 7, 3, CHANNELS)
    only = plain_student(targets="3d")
    assert set(only.show(plan_of(only), only.network(plan_of(only), None)).reasons) == {"features"}
