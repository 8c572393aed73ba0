"""A run goes on with the cache it began with, or says which is another."""

from pathlib import Path
from typing import Any

import pytest

from tests.support.training import train, training_cache
from trainer.checkpoint import CheckpointError


@pytest.mark.parametrize("format", ["zarr", "webdataset"])
def test_a_run_does_not_go_on_with_a_cache_that_has_grown(tmp_path: Path, format: str) -> None:
    """Other shapes in other batches: the same run it would not be, and its epochs would count something else."""
    path = tmp_path / "cache"
    train(training_cache(path, 16, format=format), tmp_path / "run", epochs=1)
    grown = training_cache(path, 32, format=format)
    assert len(grown) == 32
    with pytest.raises(CheckpointError, match=r"cache\.records was 16, is now 32"):
        train(grown, tmp_path / "run", epochs=2)
    with pytest.raises(CheckpointError, match=r"cache\.records was 16, is now 32"):
        train(grown, tmp_path / "run", epochs=1)  # nor is it reported as the run of that cache


def test_a_run_does_not_go_on_with_a_cache_of_another_recipe(cache: Any, tmp_path: Path) -> None:
    train(cache, tmp_path / "run", epochs=1)
    other = training_cache(tmp_path / "other", 24, features="float32")
    with pytest.raises(CheckpointError, match=r"cache.recipe was '\w+', is now '\w+'"):
        train(other, tmp_path / "run", epochs=2)


def test_where_the_cache_lies_does_not_matter(tmp_path: Path) -> None:
    train(training_cache(tmp_path / "one", 16), tmp_path / "run", epochs=1)
    report = train(training_cache(tmp_path / "two", 16), tmp_path / "run", epochs=2)
    assert report.resumed_from == 1
