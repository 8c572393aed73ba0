"""The small recorded part segmenter under another setting than the recorded one; under that: tests/parity."""

import numpy as np
import torch

from tests.support.finetune import recorded_segmenter
from tests.support.reference import reference_arrays


def test_distances_taken_directly_agree():
    # points lie on centres, where the two forms weigh by their own rounding; the result does not show it
    arrays = reference_arrays("partseg")
    points, category = (torch.from_numpy(arrays[name]) for name in ("pts", "category"))
    with torch.no_grad():
        log_probs = recorded_segmenter(interpolation="direct").eval()(points, category)
    np.testing.assert_allclose(log_probs, arrays["eval_log_probs"], rtol=0, atol=3e-5)
