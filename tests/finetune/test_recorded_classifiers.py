"""The small recorded classifiers under other settings than the recorded ones; under those: tests/parity."""

import numpy as np
import pytest
import torch

from benchmarks.parity.models import CLASSIFIERS
from tests.support.finetune import recorded_classifier
from tests.support.reference import reference_arrays


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
