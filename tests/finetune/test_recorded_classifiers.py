"""The small recorded classifiers. Tolerances are those of the reference folder's README."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.finetune import CLASSIFIERS, recorded_classifier
from tests.support.reference import reference_arrays
from trainer.classifier import Classifier, accuracy, classification_loss


class Recorded(NamedTuple):
    arrays: dict[str, np.ndarray]
    model: Classifier
    points: Tensor
    label: Tensor

    def loss(self, logits: Tensor) -> Tensor:
        return classification_loss(logits, self.label, smoothing=self.model.config.label_smoothing)


@pytest.fixture(params=CLASSIFIERS)
def recorded(request) -> Recorded:
    prefix = f"{request.param}__"
    arrays = {k.removeprefix(prefix): v for k, v in reference_arrays("finetune").items() if k.startswith(prefix)}
    model = recorded_classifier(request.param)
    return Recorded(arrays, model, torch.from_numpy(arrays["pts"]), torch.from_numpy(arrays["label"]))


def test_evaluation(recorded):
    with torch.no_grad():
        logits = recorded.model.eval()(recorded.points)
    np.testing.assert_allclose(logits, recorded.arrays["eval_logits"], rtol=0, atol=3e-5)
    assert recorded.loss(logits).item() == pytest.approx(float(recorded.arrays["eval_loss"]), rel=1e-5)
    assert 100 * accuracy(logits, recorded.label).item() == pytest.approx(float(recorded.arrays["eval_acc"]), rel=1e-5)


def test_training_and_gradients(recorded):
    arrays, model = recorded.arrays, recorded.model.train()
    logits = model(recorded.points)
    loss = recorded.loss(logits)
    loss.backward()
    np.testing.assert_allclose(logits.detach(), arrays["train_logits"], rtol=0, atol=5e-4)
    assert loss.item() == pytest.approx(float(arrays["train_loss"]), abs=5e-4)
    assert [name for name, _ in model.named_parameters()] == arrays["param_names"].tolist()
    norms = np.array([value.grad.double().norm() for value in model.parameters()])
    expected = arrays["train_grad_norms"]
    large = expected > 1e-3
    np.testing.assert_allclose(norms[large], expected[large], rtol=3e-3)
    # biases in front of a batch norm, zero up to noise: noise.json has 1.3e-4, and model_pretrain.npz's bound is this
    np.testing.assert_allclose(norms[~large], expected[~large], rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_distances_taken_directly_agree_where_no_pair_is_at_the_radius(name):
    arrays = reference_arrays("finetune")
    with torch.no_grad():
        logits = recorded_classifier(name, distance="direct").eval()(torch.from_numpy(arrays[f"{name}__pts"]))
    np.testing.assert_allclose(logits, arrays[f"{name}__eval_logits"], rtol=0, atol=3e-5)


def test_radius_zero_is_no_limit():
    arrays = reference_arrays("finetune")
    points = torch.from_numpy(arrays["modelnet40__pts"])
    with torch.no_grad():
        everywhere, far = (
            recorded_classifier("modelnet40", radius=(radius,) * 3).eval()(points) for radius in (0.0, 10.0)
        )
    np.testing.assert_allclose(everywhere, far, rtol=0, atol=1e-5)  # attention with and without a mask; measured 1e-6
    assert np.abs(far.numpy() - arrays["modelnet40__eval_logits"]).max() > 1e-2  # so the recorded radii do limit
