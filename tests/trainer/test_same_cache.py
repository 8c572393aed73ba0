"""A run goes on with the cache and the settings it began with, or says which are others."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.training import MASKING, MODEL, train, trainer_config, training_cache
from trainer.checkpoints import files as checkpoint
from trainer.checkpoints.models import resume_problems, sections_of
from trainer.config import AlignmentConfig
from trainer.errors import CheckpointError

FREE = {  # may change from one part of a run to the next: docs/checkpoints.md
    "epochs", "cache", "stale_cache", "checkpoint_every", "checkpoint_steps", "damaged", "keep_checkpoints",
    "milestone_every", "tensorboard", "readers", "prefetch", "device", "compile", "deterministic", "layout",
}  # fmt: skip


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


@pytest.fixture(scope="module")
def header(cache: Any, tmp_path_factory: pytest.TempPathFactory) -> checkpoint.Header:
    report = train(cache, tmp_path_factory.mktemp("run"), epochs=1)
    return checkpoint.read_header(report.checkpoint)


def _other(value: Any) -> Any:
    """Another value of its kind."""
    match value:
        case bool():
            return not value
        case str():
            return f"{value}-other"
        case tuple():
            return (*value[:-1], value[-1] + 1)
    return value + 1


@pytest.mark.parametrize("section", ["model", "masking", "alignment", "trainer"])
def test_every_setting_that_shapes_a_run_stops_it_where_it_changed(header: checkpoint.Header, section: str) -> None:
    parts = {
        "model": MODEL,
        "masking": MASKING,
        "alignment": AlignmentConfig(),
        "trainer": trainer_config(epochs=1),
    }
    same = {**sections_of(**parts), "evaluation": header.config["evaluation"]}
    assert resume_problems(header, same, header.cache, header.teacher) == []
    for field in fields(parts[section]):  # type: ignore[arg-type]
        changed = replace(parts[section], **{field.name: _other(getattr(parts[section], field.name))})  # type: ignore[type-var]
        now = {**same, **sections_of(**{section: changed})}
        named = [
            line for line in resume_problems(header, now, header.cache, header.teacher)
            if line.startswith(f"{section}.{field.name} was ")
        ]  # fmt: skip
        assert len(named) == (field.name not in FREE), field.name
