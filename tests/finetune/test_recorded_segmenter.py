"""The small recorded part segmenter. Tolerances are those of the reference folder's README."""

import numpy as np
import pytest
import torch

from tests.support.finetune import recorded_segmenter
from tests.support.reference import reference_arrays
from trainer.segmentation import segmentation_loss


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    return reference_arrays("partseg")


@pytest.mark.parametrize("interpolation", ["expanded", "direct"])
def test_evaluation(arrays, interpolation):
    # points lie on centres, where the two forms weigh by their own rounding; the result does not show it
    points, category, target = (torch.from_numpy(arrays[name]) for name in ("pts", "category", "target"))
    with torch.no_grad():
        log_probs = recorded_segmenter(interpolation=interpolation).eval()(points, category)
    np.testing.assert_allclose(log_probs, arrays["eval_log_probs"], rtol=0, atol=3e-5)
    assert segmentation_loss(log_probs, target).item() == pytest.approx(float(arrays["eval_loss"]), abs=3e-5)


def test_training_and_gradients(arrays):
    points, category, target = (torch.from_numpy(arrays[name]) for name in ("pts", "category", "target"))
    model = recorded_segmenter().train()
    log_probs = model(points, category)
    loss = segmentation_loss(log_probs, target)
    loss.backward()
    np.testing.assert_allclose(log_probs.detach(), arrays["train_log_probs"], rtol=0, atol=5e-4)
    assert loss.item() == pytest.approx(float(arrays["train_loss"]), rel=1e-5)
    assert [name for name, _ in model.named_parameters()] == arrays["param_names"].tolist()
    norms = np.array([value.grad.double().norm() for value in model.parameters()])
    expected = arrays["train_grad_norms"]
    large = expected > 1e-3
    np.testing.assert_allclose(norms[large], expected[large], rtol=3e-3)
    np.testing.assert_allclose(norms[~large], expected[~large], rtol=0, atol=1e-3)  # as for the classifiers
