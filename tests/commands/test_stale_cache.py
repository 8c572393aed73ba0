"""Training on a cache whose corpus changed: refused, unless it is asked for."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import teacher_cache
from tests.support.commands import run

SETTINGS = """preset = "smoke"
[corpus]
uri = "folder:shapes"
points = 128
[model]
groups = [64, 32, 16]
[trainer]
epochs = 1
batch_size = 4
points = 128
warmup_epochs = 0
tensorboard = false
[evaluation]
train = ""
test = ""
"""


def cloud(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(140, 3)).astype("f4")


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    """A folder with an experiment of 8 shapes; -> its finished cache."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shapes").mkdir()
    for k in range(8):
        np.save(tmp_path / "shapes" / f"{k}.npy", cloud(k))
    (tmp_path / "mine.toml").write_text(SETTINGS)
    built = run(capsys, "cache", "build", "mine.toml", "--workers", "1")
    assert built.code == 0, built.err
    return Path(built.out.strip())


def test_a_stale_cache_is_trained_on_only_when_asked_for(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save("shapes/3.npy", cloud(99))
    os.remove("shapes/5.npy")
    for arguments in (["--cache", experiment], ["--set", f"trainer.cache='{experiment}'"], []):
        refused = run(capsys, "pretrain", "mine.toml", *arguments)
        assert refused.code == 1
        assert "1 shape changed since the cache was built: '3.npy'" in refused.err
        assert "1 shape is no longer in the corpus: '5.npy'" in refused.err
        assert not Path("runs").exists()
    for number, arguments in enumerate((["--cache", experiment], [])):
        trained = run(capsys, "pretrain", "mine.toml", *arguments, "--stale-cache", "train", "--out", f"run{number}")
        assert trained.code == 0, trained.err
    assert 'stale_cache = "train"' in Path("run0/config.toml").read_text()
    assert len(teacher_cache.open(experiment)) == 8
    rebuilt = run(capsys, "cache", "build", "mine.toml", "--changed", "rebuild")
    assert rebuilt.code == 0, rebuilt.err
    assert run(capsys, "pretrain", "mine.toml", "--cache", experiment).code == 0


def test_shapes_that_came_do_not_make_a_cache_stale(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save("shapes/new.npy", cloud(9))
    trained = run(capsys, "pretrain", "mine.toml", "--cache", experiment)
    assert trained.code == 0, trained.err
    assert "on 8 shapes" in trained.err


def test_a_cache_alone_is_enough_to_train_on(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree("shapes")
    trained = run(capsys, "pretrain", "mine.toml", "--cache", experiment)
    assert trained.code == 0, trained.err
    assert "note: whether the corpus changed since the cache was built is unknown" in trained.err


def test_a_cache_of_another_corpus_is_not_compared(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save("shapes/3.npy", cloud(99))
    other = run(
        capsys, "pretrain", "mine.toml", "--cache", experiment, "--set", "corpus.uri='synthetic:?count=8'", "--out", "r"
    )
    assert other.code == 0, other.err
    assert "note: the cache belongs to another corpus than the experiment's" in other.err


def test_the_content_is_compared_when_asked_for(
    experiment: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.build.changes.Stamps.vouch_for", lambda *arguments: True)
    np.save("shapes/3.npy", cloud(99))
    assert run(capsys, "pretrain", "mine.toml", "--cache", experiment, "--out", "a").code == 0
    asked = run(capsys, "pretrain", "mine.toml", "--cache", experiment, "--set", "build.check=content", "--out", "b")
    assert asked.code == 1
    assert "1 shape changed" in asked.err
