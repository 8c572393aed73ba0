"""A converted cache is the one that a build with the other storage would have written, to the byte."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import teacher_cache
from teacher_cache.codecs import quantise
from teacher_cache.config import CacheConfig
from teacher_cache.testing import build, make_record

SMALLEST = 127 * float(np.finfo(np.float32).tiny)  # of a token's largest magnitude: its scale is then a normal number


@given(
    features=hnp.arrays(np.float32, (1, 3, 5), elements=st.floats(-65504, 65504, width=32)),
    exponent=st.integers(-100, 0),
    steps=st.integers(7, 127),
)
@settings(deadline=None, max_examples=300)
def test_codes_and_scales_survive_float32(features: np.ndarray, exponent: int, steps: int) -> None:
    """quantise is the identity on its own results, so int8 features can be carried as float32."""
    values = np.ldexp(features, exponent)
    values[np.abs(values).max(axis=-1) < SMALLEST] = 0
    codes, scale = quantise(values, steps)
    again, scale_again = quantise(codes * scale[..., None], steps)
    np.testing.assert_array_equal(again, codes)
    np.testing.assert_array_equal(scale_again, scale)


@pytest.mark.parametrize("format", ["zarr", "webdataset"])
def test_exact_features_are_what_is_stored(tmp_path: Path, format: str) -> None:
    config = CacheConfig(format=format, features="int8", steps=24)  # type: ignore[arg-type]
    build(tmp_path / "c", config, count=3)
    cache = teacher_cache.open(tmp_path / "c")
    exact = cache.read(range(3), exact=True).features
    assert exact.dtype == np.float32
    np.testing.assert_array_equal(exact.astype(np.float16), cache.read(range(3)).features)
    for i in range(3):
        codes, scale = quantise(make_record(i).features, 24)
        np.testing.assert_array_equal(exact[i], codes * scale[..., None])
    assert not np.array_equal(exact, exact.astype(np.float16)), "rounding to float16 would have lost something"
