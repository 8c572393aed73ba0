"""What the fine-tuning models refuse, and in which words."""

import pytest
import torch

from tests.support.finetune import tiny_classifier, tiny_clouds, tiny_segmenter
from tests.support.models import TINY
from trainer.models.config import ModelConfig
from trainer.models.heads.classifier import Classifier
from trainer.models.heads.config import MODELNET40, PB_T50_RS, SCANOBJECTNN, ClassifierConfig, SegmentationConfig
from trainer.models.heads.random_inputs import HeadDraws

CATEGORY = torch.zeros(4, dtype=torch.long)


def test_fewer_points_than_groups():
    with pytest.raises(ValueError, match="clouds have 47 points; 48 groups of 8 neighbours need at least 48"):
        tiny_classifier().eval()(tiny_clouds(points=47))
    with pytest.raises(ValueError, match="clouds have 47 points; 48 groups of 8 neighbours need at least 48"):
        tiny_segmenter().eval()(tiny_clouds(points=47), CATEGORY)
    with torch.no_grad():  # the fewest there may be
        assert tiny_classifier().eval()(tiny_clouds(points=48)).isfinite().all()
        assert tiny_segmenter().eval()(tiny_clouds(points=48), CATEGORY).isfinite().all()


def test_fewer_points_than_neighbours():
    model = tiny_classifier(neighbours=(60, 4, 4)).eval()
    with pytest.raises(ValueError, match="clouds have 50 points; 48 groups of 60 neighbours need at least 60"):
        model(tiny_clouds(points=50))


def test_shapes_and_types():
    model = tiny_classifier().eval()
    with pytest.raises(ValueError, match=r"points have shape \(96, 3\); expected \[B, N, 3\]"):
        model(tiny_clouds()[0])
    with pytest.raises(TypeError, match=r"must be float32, got torch\.float64"):
        model(tiny_clouds().double())
    with pytest.raises(ValueError, match=r"category has shape \(3,\) for points of shape \(4, 96, 3\); expected \[B\]"):
        tiny_segmenter().eval()(tiny_clouds(), CATEGORY[:3])


def test_training_needs_draws_and_more_than_one_shape():
    model = tiny_classifier().train()
    with pytest.raises(
        ValueError, match="no draws in training mode; expected HeadDraws, or a model with drop path and"
    ):
        model(tiny_clouds())
    with pytest.raises(
        ValueError, match="a training batch has 1 shape; expected at least 2, because the head normalises"
    ):
        model(tiny_clouds(batch=1), HeadDraws.for_records([0], TINY, seed=0, epoch=0))
    tiny_classifier(model={"drop_path": 0.0}, dropout=0.0).train()(tiny_clouds())


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"classes": 1, "label_smoothing": 0.0}, "classes = 1 is smaller than 2"),
        ({"neighbours": (65, 8, 8)}, "neighbours = (65, 8, 8) has 65, which is outside 1..64"),
        ({"neighbours": (0, 8, 8)}, "neighbours = (0, 8, 8) has 0, which is outside 1..64"),
        ({"radius": (0.1, -1.0, 0.3)}, "radius = (0.1, -1.0, 0.3) has -1.0, which is negative"),
        ({"radius": (float("nan"),) * 3}, "radius = (nan, nan, nan) has nan, which is not a number"),
        ({"distance": "euclidean"}, "distance = 'euclidean' is none of direct, expanded"),
        ({"pooling": "max"}, "pooling = 'max' is none of sum, concat, levels"),
        ({"hidden": (8, 0)}, "hidden = (8, 0) has 0, which is smaller than 1"),
        ({"dropout": 1.0}, "dropout = 1.0 is outside 0..1 (1 excluded)"),
        ({"label_smoothing": 0.98}, "label_smoothing = 0.98 is more than 0.975, (classes - 1) / classes"),
    ],
)
def test_classifier_settings(settings, text):
    assert list(ClassifierConfig(**settings).problems()) == [text]


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"parts": 1}, "parts = 1 is smaller than 2"),
        ({"categories": 0}, "categories = 0 is smaller than 1"),
        ({"embedding": 0}, "embedding = 0 is smaller than 1"),
        ({"propagation": (8, 8, 8)}, "propagation = (8, 8, 8) has 3 entries, not 2"),
        ({"hidden": (8, 0, 8)}, "hidden = (8, 0, 8) has 0, which is smaller than 1"),
        ({"hidden": (8, 8)}, "hidden = (8, 8) has 2 entries, not 3"),
        ({"dropout": -0.1}, "dropout = -0.1 is outside 0..1 (1 excluded)"),
    ],
)
def test_segmentation_settings(settings, text):
    assert list(SegmentationConfig(**settings).problems()) == [text]


@pytest.mark.parametrize("config", [MODELNET40, SCANOBJECTNN, PB_T50_RS, SegmentationConfig()])
def test_the_recipes_have_no_problems(config):
    assert list(config.problems()) == []
    assert list(config.conflicts(ModelConfig())) == []


def test_conflicts_with_the_model_are_all_reported_at_once():
    model = ModelConfig(groups=(40, 20, 10), neighbours=(8, 8, 8), drop_path=2.0)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - its text is checked in full
        Classifier(model, ClassifierConfig(radius=(0.1, 0.2), dropout=2.0))
    assert str(caught.value).splitlines() == [
        "4 problems in the model's settings",
        "  model.drop_path = 2.0 is outside 0..1 (1 excluded)",
        "  classifier.dropout = 2.0 is outside 0..1 (1 excluded)",
        "  classifier.radius = (0.1, 0.2) must have one value per level; model.groups = (40, 20, 10) has 3",
        "  classifier.neighbours[2] = 24 is more than model.groups[1] = 20",
    ]


def test_a_segmenter_needs_three_tokens_to_interpolate_from():
    model = ModelConfig(
        groups=(16, 8, 2), neighbours=(8, 8, 8), decoder_dims=(384,), decoder_depths=(1,), decoder_up_blocks=()
    )
    assert list(SegmentationConfig().conflicts(model)) == [
        "model.groups[-1] = 2 is less than the 3 tokens a point is interpolated from"
    ]
