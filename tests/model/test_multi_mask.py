"""Several masks of each cloud: what one pass over all of them must say, against one pass for each."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.models import THREE_STAGES, TINY_CHANNELS, assert_same, tiny_batch, tiny_model
from tests.support.plain_student import plain_student
from trainer.losses.terms import weighted_sum
from trainer.models.config import MaskingConfig
from trainer.models.guided_student import GuidedStudent
from trainer.models.hierarchical.student import I2PMAE
from trainer.models.layers.batch_norm import BatchNorm
from trainer.models.random_inputs import Draws

POINTS, MAPS = tiny_batch(seed=6)  # in which rounding moves no maximum to another member
SALIENT = MaskingConfig(ratio=0.6, saliency="standardised")


def three_stages() -> I2PMAE:
    """Targets are not looked up at the finest level."""
    return I2PMAE(THREE_STAGES, MaskingConfig(ratio=0.5), teacher_channels=TINY_CHANNELS, whole=True)


STUDENTS: dict[str, Any] = {
    "visible": tiny_model,
    "all": partial(tiny_model, batch_norm_groups="all", token0_leak=True),
    "static": partial(tiny_model, layout="static", masking=MaskingConfig(ratio=0.6, mode="random")),
    "static, all": partial(tiny_model, layout="static", batch_norm_groups="all"),
    "block": partial(tiny_model, masking=MaskingConfig(ratio=0.6, mode="block")),
    "stages": three_stages,
    "plain": partial(plain_student, whole=True, masking=SALIENT),
    "plain, block": partial(plain_student, masking=MaskingConfig(ratio=0.6, mode="block"), targets="3d"),
    "plain, wide": partial(plain_student, groups=40, neighbours=11, embed_width=14, targets="2d"),
}


def draws_for(model: GuidedStudent, masks: int) -> Draws:
    return Draws.for_records(range(len(POINTS)), model.config, seed=4, epoch=1, masks=masks)


def of_mask(draws: Draws, mask: int, masks: int) -> Draws:
    return Draws(*(part[mask::masks] for part in draws))


def computed(model: GuidedStudent, draws: Draws) -> tuple[dict[str, Tensor], dict[str, Tensor], Any, Any]:
    """Sums and counts of the losses, gradients of the sums, plan and prediction."""
    model.zero_grad()
    plan = model.plan(POINTS, POINTS, MAPS, draws)
    said = model.network(plan, draws.drop_path)
    losses = model.losses(plan, said)
    if said.whole is not None:
        weigh = torch.linspace(-1, 1, said.whole.shape[1])
        whole = (torch.nn.functional.normalize(said.whole, dim=1) @ weigh).sum()
    else:
        whole = said.encoded[0].new_zeros(()) if isinstance(said.encoded, list) else said.encoded.new_zeros(())
    (weighted_sum(losses, counts={name: torch.ones(()) for name in losses}) + whole).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    numbers = {f"{name} {what}": getattr(term, what) for name, term in losses.items() for what in ("sum", "count")}
    return {**numbers, "whole": whole}, gradients, plan, said


@pytest.mark.parametrize("name", STUDENTS)
def test_losses_and_gradients_are_the_sums_of_those_of_each_mask(name: str) -> None:
    model = STUDENTS[name]().train()
    for module in model.modules():  # statistics of a batch are of all its samples: test_statistics_*
        if isinstance(module, BatchNorm):
            module.eval()
    for masks in (2, 3):
        draws = draws_for(model, masks)
        numbers, gradients, plan, said = computed(model, draws)
        each = [computed(model, of_mask(draws, m, masks)) for m in range(masks)]
        assert numbers.keys() == each[0][0].keys()
        for key, value in numbers.items():
            torch.testing.assert_close(value, sum(one[0][key] for one in each), rtol=2e-5, atol=1e-4)
        assert_same(gradients, {key: sum(one[1][key] for one in each) for key in gradients})
        assert len({one[0]["2d sum" if plan.target_3d is None else "3d sum"].item() for one in each}) == masks
        if said.whole is not None:
            for m, one in enumerate(each):
                torch.testing.assert_close(said.whole[m::masks], one[3].whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", STUDENTS)
def test_masks_and_targets_are_those_of_one_mask_at_a_time_to_the_bit(name: str) -> None:
    model = STUDENTS[name]().eval()
    draws = draws_for(model, 2)
    both = computed(model, draws)
    shown = model.show(both[2], both[3])
    for m in range(2):
        one = computed(model, of_mask(draws, m, 2))
        alone = model.show(one[2], one[3])
        for level, expected in zip(shown.levels, alone.levels, strict=True):
            assert torch.equal(level.visible[m::2], expected.visible)
            assert torch.equal(level.centres[m::2], expected.centres)
        for found, wanted in ((shown.groups, alone.groups), (shown.features, alone.features)):
            assert (found is None) == (wanted is None)
            if found is not None:
                mine = found.sample % 2 == m
                assert torch.equal(found.sample[mine] // 2, wanted.sample)
                assert torch.equal(found.truth[mine], wanted.truth)
                torch.testing.assert_close(found.predicted[mine], wanted.predicted, rtol=1e-4, atol=1e-5)
        if shown.features is not None:
            assert torch.equal(shown.features.points[shown.features.sample % 2 == m], alone.features.points)


def test_statistics_of_the_plain_embedding_are_those_of_one_mask() -> None:
    """It embeds every group before the masks, once; so even training's loss is the mean of each mask's."""
    numbers, gradients, buffers = [], [], []
    draws = draws_for(plain_student(), 2)
    for some in (draws, of_mask(draws, 0, 2), of_mask(draws, 1, 2)):
        model = plain_student().train()
        model.plan(POINTS, POINTS, MAPS, some)
        found = computed(model, some)
        numbers.append({key: value for key, value in found[0].items() if "sum" in key})
        gradients.append(found[1])
        buffers.append(dict(model.named_buffers()))
    for key, value in numbers[0].items():
        torch.testing.assert_close(value, numbers[1][key] + numbers[2][key], rtol=1e-5, atol=0)
    assert_same(gradients[0], {key: gradients[1][key] + gradients[2][key] for key in gradients[0]})
    assert all(torch.equal(value, buffers[1][key]) for key, value in buffers[0].items())


@pytest.mark.parametrize("groups", ["visible", "all"])
def test_statistics_count_a_group_of_points_once(groups: Any) -> None:
    """However many of its cloud's masks show it; in both layouts, which find the groups in their own ways."""
    models = [tiny_model(layout=layout, batch_norm_groups=groups).train() for layout in ("packed", "static")]
    draws = draws_for(models[0], 3)
    packed, static = (computed(model, draws) for model in models)
    for key, value in packed[0].items():
        torch.testing.assert_close(value, static[0][key], rtol=1e-5, atol=1e-4)
    assert_same(packed[1], static[1])
    assert_same(*(dict(model.named_buffers()) for model in models))
    plan = packed[2]
    members = plan.levels[0].members[::3]
    relative = POINTS[torch.arange(4)[:, None, None], members] - plan.levels[0].centres[::3, :, None]
    counted = torch.ones(4, 48, dtype=torch.bool) if groups == "all" else plan.tokens[0].visible.view(4, 3, 48).any(1)
    expand, norm = tiny_model().h_encoder.token_embed[0].first_conv[:2]
    expected = expand(relative[counted]).flatten(0, 1).mean(0) * norm.momentum
    torch.testing.assert_close(models[0].h_encoder.token_embed[0].first_conv[1].running_mean, expected)


def test_a_masks_numbers_depend_on_which_it_is_and_not_on_how_many() -> None:
    model = tiny_model()
    one, two, four = (draws_for(model, masks) for masks in (1, 2, 4))
    for of_one, of_two, of_four in zip(one, two, four, strict=True):
        assert torch.equal(of_one, of_four[::4])
        assert torch.equal(of_two, torch.stack((of_four[::4], of_four[1::4]), 1).flatten(0, 1))
        assert (of_four[::4] != of_four[1::4]).float().mean() > 0.99


@pytest.mark.parametrize("make", [tiny_model, plain_student])
def test_samples_that_are_not_equally_many_a_cloud_are_refused(make: Any) -> None:
    model = make()
    draws = draws_for(model, 2)
    some = Draws(*(part[:6] for part in draws))
    with pytest.raises(ValueError, match="draws of 6 samples for 4 clouds; expected one a cloud, or as many masks"):
        model.plan(POINTS, POINTS, MAPS, some)
    order = draws.mask[:4].argsort(1)
    with pytest.raises(ValueError, match="draws of 8 and mask_order of 4 samples for 4 clouds"):
        model.plan(POINTS, POINTS, MAPS, draws, mask_order=order)
    with pytest.raises(ValueError, match=r"mask_order has shape \(8,\)"):
        model.plan(POINTS, POINTS, MAPS, draws, mask_order=draws.mask[:, 0].long())
