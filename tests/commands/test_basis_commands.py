"""Channels of their own on the command line: what a person is told, and a live teacher that follows the cache."""

import re
from pathlib import Path

import pytest

import teacher_cache
from tests.support.commands import run
from trainer.checkpoints import files as checkpoint

SETTINGS = (
    "corpus.uri=synthetic:?count=20&seed=0&split=train",
    "cache.channels=32",
    "cache.sample=16",
    'cache.features="int8"',
    "cache.steps=48",
    'cache.untouched="zero"',
)


@pytest.fixture
def settings(tmp_path):
    return [part for text in (*SETTINGS, f"cache.root={tmp_path / 'caches'}") for part in ("--set", text)]


def test_build_says_that_it_fits_and_info_what_came_of_it(tmp_path, capsys, settings):
    built = run(capsys, "cache", "build", "smoke", *settings)
    assert built.code == 0
    assert "fitting 32 channels to the teacher's features of 16 shapes" in built.err
    path = Path(built.out.strip())
    told = run(capsys, "cache", "info", path).out
    assert "196 tokens of 32 channels" in told
    basis = teacher_cache.open(path).basis
    line = next(line for line in told.splitlines() if line.startswith("basis"))
    said = rf"basis +{basis.sha256[:12]}, 32 of the teacher's 128 channels, ([0-9.]+)% of the variance of 16 shapes"
    found = re.fullmatch(said, line)
    assert found
    assert float(found[1]) == pytest.approx(100 * basis.kept, abs=0.005)
    assert run(capsys, "cache", "verify", path).code == 0
    again = run(capsys, "cache", "build", "smoke", *settings)
    assert "fitting" not in again.err
    assert "cache complete: 20 shapes" in again.err

    # The same basis for the teacher that looks in every step; the student's head has its channels.
    live = ["--set", 'trainer.teacher="live"', "--set", "trainer.epochs=1", "--set", 'evaluation.train=""']
    more = ["--set", 'evaluation.test=""', "--set", "trainer.tensorboard=false", "--out", tmp_path / "run"]
    trained = run(capsys, "pretrain", "smoke", *settings, *live, *more)
    assert trained.code == 0, trained.err
    header = checkpoint.read_header(checkpoint.latest(tmp_path / "run"))
    assert header.teacher["channels"] == 32
    assert header.cache["basis"] == basis.sha256


def test_more_channels_than_the_teacher_has_end_without_a_traceback(capsys, settings):
    outcome = run(capsys, "cache", "build", "smoke", *settings, "--set", "cache.channels=200")
    assert outcome.code == 1
    assert "cache.channels = 200 is more than the 128 channels of teacher.architecture = i2p-vit-tiny-16" in outcome.err
    assert "Traceback" not in outcome.err


def test_a_sample_without_channels_is_a_fault_of_the_settings(capsys):
    outcome = run(capsys, "cache", "build", "smoke", "--set", "cache.sample=16")
    assert outcome.code == 2
    assert (
        "cache.sample = 16 is the number of shapes that a basis is fitted on, and channels = 0 uses no basis"
        in outcome.err
    )
