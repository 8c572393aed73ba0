"""What is refused, and in which words."""

import dataclasses
import re

import pytest
import torch

from tests.support.models import TINY_CHANNELS, tiny_batch, tiny_model
from trainer.models.config import REFERENCE_QUIRKS, MaskingConfig, ModelConfig
from trainer.models.hierarchical.student import I2PMAE
from trainer.models.random_inputs import Draws


def test_defaults_and_reference_have_no_problems():
    for config in (ModelConfig(), ModelConfig.reference(), MaskingConfig()):
        assert list(config.problems()) == []


def test_reference_differs_from_the_defaults_exactly_in_the_quirks():
    ours, reference = dataclasses.asdict(ModelConfig()), dataclasses.asdict(ModelConfig.reference())
    changed = {name for name in ours if ours[name] != reference[name]}
    assert changed == {name for name, value in REFERENCE_QUIRKS.items() if value != ours[name]}
    assert changed >= {"token0_leak", "eval_hide_unused", "batch_norm_groups", "interpolation", "fps_skip_near_origin"}


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"groups": (64,)}, "groups = (64,) has fewer than 2 levels"),
        ({"groups": (64, 64, 8)}, "groups = (64, 64, 8) does not decrease from level to level"),
        ({"groups": (64, 0, 8)}, "groups = (64, 0, 8) has 0, which is smaller than 1"),
        ({"neighbours": (16, 8)}, "neighbours = (16, 8) must have one value per level; groups = (512, 256, 64) has 3"),
        ({"neighbours": (65, 8, 8)}, "neighbours = (65, 8, 8) has 65, which is outside 1..64"),
        ({"groups": (32, 16, 4), "neighbours": (8, 33, 4)}, "neighbours[1] = 33 is more than groups[0] = 32"),
        ({"groups": (32, 16, 2), "neighbours": (8, 8, 2)}, "groups[-1] = 2 is less than the 3 neighbours"),
        ({"encoder_dims": (96, 192, 380)}, "encoder_dims has 380, which is not a multiple of heads = 6"),
        ({"decoder_dims": (192, 96)}, "decoder_dims[0] = 192 is not encoder_dims[-1] = 384"),
        ({"decoder_dims": (384, 192, 96)}, "decoder_dims = (384, 192, 96) has 3 stages; groups allow 1..2"),
        ({"decoder_depths": (1,)}, "decoder_depths = (1,) must have one value per stage"),
        ({"decoder_up_blocks": (1, 1)}, "decoder_up_blocks = (1, 1) must have 1 values"),
        ({"decoder_up_blocks": (-1,)}, "decoder_up_blocks = (-1,) has -1, which is negative"),
        ({"heads": 0}, "heads = 0 is smaller than 1"),
        ({"mlp_ratio": 0.0}, "mlp_ratio = 0.0 is not positive"),
        ({"drop_path": 1.0}, "drop_path = 1.0 is outside 0..1 (1 excluded)"),
        ({"targets": "4d"}, "targets = '4d' is none of both, 3d, 2d"),
        ({"layout": "loose"}, "layout = 'loose' is none of packed, static"),
        ({"batch_norm_groups": "some"}, "batch_norm_groups = 'some' is none of visible, all"),
        ({"merge_input": "x"}, "merge_input = 'x' is none of raw, normed"),
        ({"interpolation": "x"}, "interpolation = 'x' is none of direct, expanded"),
        ({"initialisation": "x"}, "initialisation = 'x' is none of mixed, xavier"),
    ],
)
def test_each_problem_of_the_model_section_is_named(settings, text):
    problems = list(ModelConfig(**settings).problems())
    assert any(problem.startswith(text) for problem in problems), problems
    with pytest.raises(ValueError, match=re.escape(f"model.{text}")):
        I2PMAE(ModelConfig(**settings), MaskingConfig(), teacher_channels=8)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"mode": "x"}, "mode = 'x' is none of saliency, random, block"),
        ({"saliency": "x"}, "saliency = 'x' is none of raw, standardised"),
        ({"ratio": 1.0}, "ratio = 1.0 is outside 0..1 (1 excluded)"),
        ({"temperature": 0.0}, "temperature = 0.0 is not positive"),
    ],
)
def test_each_problem_of_the_masking_section_is_named(settings, text):
    assert list(MaskingConfig(**settings).problems()) == [text]


def test_all_problems_are_reported_together():
    with pytest.raises(
        ValueError, match=r"2 problems in the model's settings\n  model.drop_path = 2.*\n  masking.ratio = -1"
    ):
        I2PMAE(ModelConfig(drop_path=2.0), MaskingConfig(ratio=-1.0), teacher_channels=8)


def test_wrong_arguments_say_what_was_expected():
    points, maps = tiny_batch()
    model = tiny_model().train()
    draws = Draws.for_records(range(4), model.config, seed=0, epoch=0)
    order = torch.arange(8).expand(4, 8)

    def refuses(text: str, *args: object, **kwargs: object) -> None:
        with pytest.raises(ValueError, match=re.escape(text)):
            model(*args, **kwargs)

    refuses("points have shape (4, 96, 2); expected [B, N, 3]", points[..., :2], points, maps, draws)
    refuses(
        "clouds have 40 points; a model of 48 groups of 8 neighbours needs at least 48. Use more points or",
        points[:, :40],
        points[:, :40],
        maps,
        draws,
    )
    refuses(
        "points_canonical have shape (4, 95, 3); expected the shape of points, (4, 96, 3)",
        points,
        points[:, 1:],
        maps,
        draws,
    )
    refuses(
        "no teacher maps, but model.targets = 'both' and masking.mode = 'saliency' need them",
        points,
        points,
        None,
        draws,
    )
    wrong = maps._replace(features=maps.features[..., 1:])
    refuses(
        f"4 shapes, 3 views, {TINY_CHANNELS - 1} channels; expected 4, 3, {TINY_CHANNELS}", points, points, wrong, draws
    )
    refuses("no draws; expected Draws, or mask_order with drop path off", points, points, maps, None)
    refuses("no draws; expected Draws", points, points, maps, None, mask_order=order)
    refuses("mask_order has shape (4, 7); expected [4, 8]", points, points, maps, draws, mask_order=order[:, :7])


def test_encode_refuses_too_few_points():
    with pytest.raises(ValueError, match="clouds have 40 points; a model of 48 groups"):
        tiny_model().eval().encode(torch.rand(1, 40, 3))
