"""What holds for any fine-tuning model, whatever its weights."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.support.finetune import tiny_classifier, tiny_clouds, tiny_segmenter
from tests.support.models import TINY
from trainer.models.heads.classifier import accuracy, classification_loss
from trainer.models.heads.part_segmenter import segmentation_loss
from trainer.models.heads.radius import within_radius
from trainer.models.heads.random_inputs import HeadDraws
from trainer.models.layers.transformer import Attention

CATEGORY = torch.tensor([2, 0, 1, 1])
HEADS = {"classifier": tiny_classifier, "segmenter": tiny_segmenter}


def run(model: nn.Module, points: torch.Tensor, *extra: object) -> torch.Tensor:
    category = (CATEGORY[: len(points)],) if hasattr(model, "label_conv") else ()
    return model(points, *category, *extra)


def draws(batch: int = 4) -> HeadDraws:
    return HeadDraws.for_records(range(batch), TINY, seed=0, epoch=0)


@pytest.fixture(params=HEADS)
def make(request):
    return HEADS[request.param]


def warmed(model: nn.Module) -> nn.Module:
    """In evaluation mode, with running averages of real values: those of a new model hide what is before them."""
    model.train()
    with torch.no_grad():
        for seed in range(3):
            run(model, tiny_clouds(seed + 10), draws())
    return model.eval()


@torch.no_grad()
def test_order_of_points_after_the_first_does_not_matter():
    # greedy sampling starts at point 0; without ties it then depends on places only
    points = tiny_clouds()
    order = torch.cat((torch.tensor([0]), 1 + torch.randperm(95, generator=torch.Generator().manual_seed(1))))
    model = warmed(tiny_classifier())
    assert torch.equal(model(points[:, order]), model(points))
    model = warmed(tiny_segmenter())
    # the mean over the points is a sum in another order; measured 1e-6
    torch.testing.assert_close(model(points[:, order], CATEGORY), model(points, CATEGORY)[:, order], rtol=0, atol=2e-5)


@torch.no_grad()
def test_shapes_of_a_batch_do_not_meet_in_evaluation(make):
    points, model = tiny_clouds(), warmed(make())
    whole = run(model, points)
    torch.testing.assert_close(run(model, points[:1]), whole[:1], rtol=0, atol=2e-5)
    assert (whole[0] - whole[1]).abs().max() > 1e-3


@torch.no_grad()
def test_scaling_cloud_and_radii_together_keeps_groups_and_surroundings(make):
    points = tiny_clouds()
    small, large = make().h_encoder, make(radius=(2.0, 3.2, 4.8)).h_encoder  # a power of two: exact in float32
    one, four = small.plan(points), large.plan(4 * points)
    for a, b in zip(one.levels, four.levels, strict=True):
        assert torch.equal(a.members, b.members)
    for a, b in zip(one.near, four.near, strict=True):
        assert torch.equal(a, b)


@torch.no_grad()
def test_a_tiny_radius_leaves_each_token_to_itself(make):
    attention = Attention(12, 2)
    x = torch.randn(1, 30, 12, generator=torch.Generator().manual_seed(0))
    near = within_radius(torch.rand(1, 30, 3, generator=torch.Generator().manual_seed(1)), 1e-9, distance="direct")
    alone = attention(x.transpose(0, 1), None).transpose(0, 1)  # thirty samples of one token
    torch.testing.assert_close(attention(x, near), alone, rtol=0, atol=1e-6)
    model = warmed(make(radius=(1e-9,) * 3))
    assert run(model, tiny_clouds()).isfinite().all()


@torch.no_grad()
def test_coincident_points_give_finite_scores(make):
    points = tiny_clouds()
    points[0] = 0.0  # every centre on the same spot, all distances 0
    points[1, 48:] = points[1, :48]
    points[2, :, 1:] = 0.0  # on a line
    assert run(warmed(make()), points).isfinite().all()


def test_every_parameter_gets_a_gradient(make):
    model = make().train()
    output = run(model, tiny_clouds(), draws())
    loss = classification_loss(output, CATEGORY, smoothing=0.2) if output.ndim == 2 else -output[..., 0].mean()
    loss.backward()
    assert [name for name, value in model.named_parameters() if value.grad is None] == []
    assert all(value.grad.isfinite().all() for value in model.parameters())


def test_normed_merging_has_the_norms_it_uses_and_trains_them():
    model = tiny_classifier(model={"merge_input": "normed"}).train()
    names = [name for name, _ in model.named_parameters() if "encoder_norms" in name]
    assert names == [f"h_encoder.encoder_norms.{level}.{what}" for level in (0, 1) for what in ("weight", "bias")]
    model(tiny_clouds(), draws()).square().sum().backward()
    assert all(value.grad is not None for value in model.parameters())
    with torch.no_grad():
        model.h_encoder.encoder_norms[0].weight.mul_(2)
        changed = warmed(tiny_classifier(model={"merge_input": "normed"}))
        before = changed(tiny_clouds())
        changed.h_encoder.encoder_norms[0].weight.mul_(2)
        assert not torch.allclose(changed(tiny_clouds()), before)


def test_drop_path_and_dropout_each_matter_in_training_only(make):
    points = tiny_clouds()
    model = make().train()
    with torch.no_grad():
        first, again = run(model, points, draws()), run(model, points, draws())
        other_draws = HeadDraws.for_records(range(4), TINY, seed=1, epoch=0)
        paths, values = draws()._replace(drop_path=other_draws.drop_path), draws()._replace(dropout=other_draws.dropout)
        other_paths, other_values = run(model, points, paths), run(model, points, values)
    assert torch.equal(first, again)
    assert (first - other_paths).abs().max() > 1e-3
    assert (first - other_values).abs().max() > 1e-3
    model.eval()
    with torch.no_grad():
        assert torch.equal(run(model, points, draws()), run(model, points))


@torch.no_grad()
def test_autocast_stays_near(make):
    points, model = tiny_clouds(), warmed(make())
    exact = run(model, points)
    with torch.autocast("cpu", torch.bfloat16):
        coarse = run(model, points)
    assert (coarse.float() - exact).abs().max() < 0.1 * exact.abs().max()  # measured 0.02; bfloat16 has 8 bits
    if exact.ndim == 3:
        assert coarse.dtype == torch.float32
        torch.testing.assert_close(coarse.exp().sum(2), torch.ones(4, 96), rtol=0, atol=1e-5)


def test_smoothing_puts_its_share_on_the_other_classes():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(6, 5, generator=generator), torch.tensor([0, 1, 2, 3, 4, 0])
    target = torch.full((6, 5), 0.2 / 4)
    target[torch.arange(6), labels] = 0.8
    expected = -(target * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(classification_loss(logits, labels, smoothing=0.2), expected)
    plain = F.cross_entropy(logits, labels)
    torch.testing.assert_close(classification_loss(logits, labels, smoothing=0.0), plain)


def test_accuracy_counts_the_largest():
    logits = torch.tensor([[1.0, 2.0, 0.0], [3.0, 2.0, 0.0], [0.0, 0.5, 1.0], [0.0, 0.0, 4.0]])
    assert accuracy(logits, torch.tensor([1, 1, 2, 2])).item() == 0.75


def test_segmentation_loss_is_the_mean_over_points():
    log_probs = torch.log(torch.tensor([[[0.5, 0.5], [0.25, 0.75]], [[1.0, 1e-9], [0.5, 0.5]]]))
    loss = segmentation_loss(log_probs, torch.tensor([[0, 1], [0, 1]]))
    assert loss.item() == pytest.approx(-torch.tensor([0.5, 0.75, 1.0, 0.5]).log().mean().item())


def test_segmentation_loss_among_the_parts_a_shape_can_have():
    """Likelihoods 1/2, 1/4, 1/4 of three parts, of which the first shape can have two and the second all."""
    log_probs = torch.log(torch.tensor([[[0.5, 0.25, 0.25]], [[0.5, 0.25, 0.25]]])).requires_grad_()
    possible = torch.tensor([[True, True, False], [True, True, True]])
    loss = segmentation_loss(log_probs, torch.tensor([[1], [0]]), possible)
    assert loss.item() == pytest.approx(-torch.tensor([1 / 3, 1 / 2]).log().mean().item())
    loss.backward()
    torch.testing.assert_close(
        log_probs.grad[:, 0], torch.tensor([[1 / 3, -1 / 3, 0.0], [-1 / 4, 1 / 8, 1 / 8]])
    )  # of a softmax: likelihood, less 1 for the part itself, over 2 points


def test_classifier_learns_to_tell_balls_from_sticks():
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(16, 64, 3, generator=generator)
    points = points / points.norm(dim=2, keepdim=True)
    labels = torch.arange(16) % 2
    points[labels == 1, :, 1:] *= 0.1
    # Running averages start at 1, and "mixed" weights make variances near 0.001 here: many steps till they meet.
    model = tiny_classifier(classes=2, model={"initialisation": "xavier"}).train()
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    for epoch in range(40):
        logits = model(points, HeadDraws.for_records(range(16), TINY, seed=0, epoch=epoch))
        optimizer.zero_grad()
        classification_loss(logits, labels, smoothing=0.1).backward()
        optimizer.step()
    with torch.no_grad():
        for epoch in range(40, 60):  # the averages lag behind so fast a training
            model(points, HeadDraws.for_records(range(16), TINY, seed=0, epoch=epoch))
        assert accuracy(model.eval()(points), labels).item() == 1.0
