"""A tiny study, end to end: every kind of arm, stopped and gone on with, failing and reported."""

import json
from pathlib import Path

import pytest

from cli.config import ConfigError
from cli.study.arms import ARMS, TEACHERS
from cli.study.plan import plan_runs, result_of
from tests.support.commands import run

TINY = [
    "corpus.uri=synthetic:?count=8&seed=0", "corpus.points=64", "trainer.points=64", "trainer.batch_size=4",
    "trainer.epochs=4", "trainer.warmup_epochs=0", "model.groups=[16, 8, 4]", "model.neighbours=[4, 4, 4]",
    "model.encoder_dims=[12, 24, 48]", "model.decoder_dims=[48, 24]", "evaluation.points=64",
    "evaluation.stored_points=64", "evaluation.train=synthetic:?count=24&seed=1&categories=chair,table,mug",
    "evaluation.test=synthetic:?count=9&seed=1&split=test&categories=chair,table,mug", "cache.shapes_per_shard=8",
]  # fmt: skip


def settings(folder):
    return [*TINY, f"cache.root={folder / 'caches'}"]


def guidance(capsys, folder, *more):
    overrides = [text for setting in settings(folder) for text in ("--set", setting)]
    return run(capsys, "study", "guidance", "--out", folder / "study", "--seeds", 1, *overrides, *more)


def test_a_study_runs_once_and_is_then_only_reported(capsys, tmp_path):
    only = [text for arm in ("3d-random", "full", "poses4") for text in ("--only", arm)]
    first = guidance(capsys, tmp_path, *only)
    assert first.code == 0, first.err
    for row in ("untrained | none", "3d-random | none", "full | embedded", "full | random", "poses4 | embedded"):
        assert row in first.out
    found = json.loads((tmp_path / "study" / "embedded" / "full" / "seed-0" / "result.json").read_text())
    assert found["steps"] == 8
    assert 0 <= found["visible"]["others"] <= 1
    posed = json.loads((tmp_path / "study" / "embedded" / "poses4" / "seed-0" / "result.json").read_text())
    assert posed["steps"] == 8  # a quarter of the epochs over four times the records
    assert (tmp_path / "study" / "study.png").stat().st_size > 1000
    again = guidance(capsys, tmp_path, *only)
    assert again.code == 0
    assert again.out == first.out
    assert "runs in" not in again.err
    changed = guidance(capsys, tmp_path, *only, "--set", "trainer.learning_rate=0.5")
    assert changed.code == 2
    assert "holds a result of other settings" in changed.err


def test_a_failing_run_is_reported_and_the_others_go_on(capsys, tmp_path):
    blocked = tmp_path / "study" / "random" / "full"
    blocked.mkdir(parents=True)
    (blocked / "seed-0").write_text("a file where the run's folder should be")
    answer = guidance(capsys, tmp_path, "--only", "full")
    assert answer.code == 1
    assert "FAILED full, random, seed 0" in answer.err
    assert "full | embedded" in answer.out
    (blocked / "seed-0").unlink()
    assert guidance(capsys, tmp_path, "--only", "full").code == 0


def plan(folder, **options):
    given = {"teachers": TEACHERS, "main": "embedded", "seeds": 2, "real": [], "only": []} | options
    return plan_runs("study", settings(folder), folder=folder, **given)


def test_every_arm_is_planned_seed_by_seed(tmp_path):
    runs = plan(tmp_path)
    each = sum(arm.teachers == "each" for arm in ARMS)
    alone = len(ARMS) - each
    assert len(runs) == 2 * (1 + alone + each * len(TEACHERS))
    assert [run.seed for run in runs] == sorted(run.seed for run in runs)
    assert len({run.folder for run in runs}) == len(runs)
    assert len({run.settings for run in runs}) >= len(runs) - 2  # "untrained" shares its settings with "full"
    assert {run.cache for run in runs} == {"embedded-1", "embedded-4", "random-1"}
    assert all(result_of(run) is None for run in runs)


def test_the_full_preset_is_sound_for_every_arm():
    assert plan_runs("study", [], teachers=TEACHERS, main="embedded", seeds=1, real=[], only=[], folder=Path("x"))


@pytest.mark.parametrize(("options", "message"), [({"only": ["ful"]}, "arms are"), ({"main": "x"}, "teachers are")])
def test_unknown_arms_and_teachers_are_refused(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        plan(tmp_path, **options)


def test_the_options_are_checked(capsys):
    assert "NAME=TRAIN,TEST" in run(capsys, "study", "guidance", "--real", "x").err
    assert "NAME=key=value" in run(capsys, "study", "guidance", "--teacher", "x").err
    assert "i2p study guidance" in run(capsys, "study", "guidance", "--help").out
