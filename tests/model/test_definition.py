"""The models compute what their definition says, at sizes that all differ; at the paper's some agree by accident.

Golden losses and recorded arrays only say that something is other than it was, and at one set of sizes.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from tests.support.models import SIZES, THREE_STAGES, tiny_batch
from tests.support.plain_models import plain_classifier, plain_feature, plain_losses, plain_segmenter
from trainer.checkpoints.transfer import load_pretrained_encoder
from trainer.losses.terms import weighted_sum
from trainer.models.config import MaskingConfig, ModelConfig
from trainer.models.heads.classifier import Classifier, classification_loss
from trainer.models.heads.config import ClassifierConfig, SegmentationConfig
from trainer.models.heads.part_segmenter import PartSegmenter
from trainer.models.hierarchical.student import I2PMAE
from trainer.models.layers.batch_norm import BatchNorm
from trainer.models.layers.pooling import FEATURES, feature_width
from trainer.models.random_inputs import Draws

POINTS = 75


def unlike_fresh(module: nn.Module) -> nn.Module:
    """With norms, biases and running statistics that are not those of a fresh module."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, value in [*module.named_parameters(), *module.named_buffers()]:
            if not value.is_floating_point():
                continue
            drawn = torch.rand(value.shape, generator=generator)
            if name.endswith("running_var"):
                value.copy_(0.5 + drawn)
            elif value.ndim == 1 and name.endswith("weight"):
                value.copy_(0.7 + 0.6 * drawn)
            elif value.ndim == 1:
                value.copy_(0.4 * drawn - 0.2)
            else:
                value.copy_((2 * drawn - 1) * (3 / value[0].numel()) ** 0.5)
    return module


def student(config: ModelConfig) -> I2PMAE:
    model = I2PMAE(config, MaskingConfig(ratio=0.6), teacher_channels=6)
    return unlike_fresh(model).eval()  # type: ignore[return-value]


@pytest.fixture(scope="module", params=[SIZES, THREE_STAGES], ids=["two stages", "three stages"])
def config(request: pytest.FixtureRequest) -> ModelConfig:
    return request.param


@pytest.mark.parametrize("layout", ["packed", "static"])
def test_losses_are_those_of_the_definition(config, layout):
    model = student(replace(config, layout=layout))
    points, maps = tiny_batch(batch=3, points=POINTS)
    moved = points * torch.tensor([0.9, 1.1, 1.0]) + 0.05
    order = torch.stack(
        [torch.randperm(config.groups[-1], generator=torch.Generator().manual_seed(b)) for b in range(3)]
    )
    with torch.no_grad():
        found = model(moved, points, maps, None, mask_order=order)
    expected = plain_losses(model, moved, points, maps, order)
    # float32 against float64: 3e-7 was seen
    assert (found["3d"].mean.item(), found["2d"].mean.item()) == pytest.approx(expected, rel=2e-5)
    assert weighted_sum(found).item() == pytest.approx(sum(expected), rel=2e-5)
    assert weighted_sum(found, weights={"2d": 0.25}).item() == pytest.approx(expected[0] + 0.25 * expected[1], rel=2e-5)


def test_drop_path_is_that_of_the_definition(config):
    """Each branch of each block by its own number, scaled up where it is kept."""
    model = student(config).train()
    for module in model.modules():
        if isinstance(module, BatchNorm):
            module.eval()
    points, maps = tiny_batch(batch=3, points=POINTS)
    draws = Draws.for_records(range(3), config, seed=0, epoch=0)
    order = torch.arange(config.groups[-1]).expand(3, -1)
    with torch.no_grad():
        found = model(points, points, maps, draws, mask_order=order)
    expected = plain_losses(model, points, points, maps, order, draws.drop_path)
    assert (found["3d"].mean.item(), found["2d"].mean.item()) == pytest.approx(expected, rel=2e-5)
    assert plain_losses(model, points, points, maps, order) != pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("layout", ["packed", "static"])
@pytest.mark.parametrize("hide_unused", [False, True])
@pytest.mark.parametrize("feature", FEATURES)
def test_the_evaluation_feature_is_that_of_the_definition(config, feature, hide_unused, layout):
    model = student(replace(config, eval_hide_unused=hide_unused, layout=layout))
    points, _ = tiny_batch(batch=3, points=POINTS)
    with torch.no_grad():
        found = model.encode(points, feature).double().numpy()
    assert found.shape == (3, feature_width(config.encoder_dims, feature))
    np.testing.assert_allclose(found, plain_feature(model, points, feature).numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pooling", ["sum", "concat", "levels"])
def test_the_classifier_is_that_of_the_definition(pooling):
    head = ClassifierConfig(classes=5, neighbours=(9, 6, 5), radius=(0.5, 0, 0.9), pooling=pooling, hidden=(17, 13))
    model = unlike_fresh(Classifier(SIZES, head)).eval()
    points, _ = tiny_batch(batch=3, points=POINTS)
    with torch.no_grad():
        found = model(points).double().numpy()
    np.testing.assert_allclose(found, plain_classifier(model, points).numpy(), rtol=1e-4, atol=1e-5)


def test_the_head_of_levels_sees_the_students_own_feature(config):
    """All to all, with the groups of pre-training: what is fine-tuned begins as what a probe sees."""
    model = student(config)
    head = ClassifierConfig(classes=5, neighbours=config.neighbours, radius=(0.0,) * config.levels, pooling="levels")
    tuned = Classifier(config, head).eval()
    load_pretrained_encoder(tuned, model.state_dict(), source="the student")
    points, _ = tiny_batch(batch=3, points=POINTS)
    with torch.no_grad():
        found = tuned.pooled(tuned.plan(points))
        torch.testing.assert_close(found, model.encode(points, "levels"), rtol=1e-5, atol=1e-6)
    assert found.shape == (3, tuned.feature_width)
    near = Classifier(config, replace(head, radius=(0.4,) * config.levels)).eval()
    load_pretrained_encoder(near, model.state_dict(), source="the student")
    with torch.no_grad():
        assert (near.pooled(near.plan(points)) - found).abs().max() > 1e-3


def test_the_segmenter_is_that_of_the_definition():
    head = SegmentationConfig(
        parts=7, categories=4, neighbours=(9, 6, 5), radius=(0.6, 0.8, 0), embedding=11, propagation=(15, 23),
        hidden=(31, 19, 8),
    )  # fmt: skip
    model = unlike_fresh(PartSegmenter(SIZES, head)).eval()
    points, _ = tiny_batch(batch=3, points=POINTS)
    category = torch.tensor([3, 0, 2])
    with torch.no_grad():
        found = model(points, category).double().numpy()
    np.testing.assert_allclose(found, plain_segmenter(model, points, category).numpy(), rtol=1e-4, atol=2e-5)


def test_the_classification_loss_by_hand():
    """Of 3 classes with smoothing 0.2: 0.8 on the label, 0.1 on each other."""
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 3.0]])
    logs = logits.double().log_softmax(1)
    expected = -(0.8 * logs[0, 0] + 0.1 * logs[0, 1] + 0.1 * logs[0, 2]) / 2
    expected -= (0.8 * logs[1, 1] + 0.1 * logs[1, 0] + 0.1 * logs[1, 2]) / 2
    found = classification_loss(logits, torch.tensor([0, 1]), smoothing=0.2)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    assert math.isclose(classification_loss(logits, torch.tensor([0, 1]), smoothing=0.0).item(),
                        -(logs[0, 0] + logs[1, 1]).item() / 2, rel_tol=1e-6)  # fmt: skip
