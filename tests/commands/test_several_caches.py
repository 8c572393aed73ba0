"""`i2p pretrain --cache A --cache B`: a run with two teachers, repeated from its own settings."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import teacher_cache
from tests.commands.test_stale_cache import SETTINGS, cloud
from tests.support.commands import Outcome, run
from trainer.checkpoints.files import latest, read_header


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> list[str]:
    """Caches of 7 and of 9 shapes, of two teachers."""
    monkeypatch.chdir(tmp_path)
    Path("shapes").mkdir()
    for k in range(9):
        np.save(f"shapes/{k:02d}.npy", cloud(k))
    Path("mine.toml").write_text(SETTINGS + "[cache]\nshapes_per_shard = 4\n")
    found = []
    for teacher, few in (("embedded", ["--set", "corpus.take=7"]), ("random", [])):
        answer = run(
            capsys, "cache", "build", "mine.toml", "--workers", 1, "--set", f"teacher.pretrained={teacher}", *few
        )
        assert answer.code == 0, answer.err
        found.append(answer.out.strip())
    return found


def trained(capsys: Any, *arguments: object) -> Outcome:
    return run(capsys, "pretrain", "mine.toml", "--out", "run", "--set", "corpus.take=7", *arguments)


def test_a_run_with_two_caches_is_repeated_by_its_own_settings(capsys: Any, caches: list[str]) -> None:
    first, second = caches
    answer = trained(capsys, "--cache", first, "--cache", second, "--set", "teachers.weights_2d=[1, 0.5]")
    assert answer.code == 0, answer.err
    assert "2d_2" in answer.err
    found = latest(Path("run"))
    assert found is not None
    header = read_header(found)
    assert header.cache["further"] == [{"recipe": teacher_cache.open(second).recipe.hash}]
    assert header.config["teachers"]["weights_2d"] == [1, 0.5]
    again = run(capsys, "pretrain", "run/config.toml", "--out", "run")
    assert "already complete" in again.err, again.err
    # The first teacher's cache may be the one that the experiment describes.
    described = trained(
        capsys, "--set", f"teachers.caches=['{second}']", "--set", "teachers.weights_2d=[1, 0.5]",
        "--set", "trainer.epochs=2",
    )  # fmt: skip
    assert described.code == 0, described.err
    assert "resuming" in described.err
    info = run(capsys, "checkpoint", "info", "run")
    assert info.out.count("teacher     3 views") == 2


def test_what_does_not_fit_together_is_said_before_anything_is_done(capsys: Any, caches: list[str]) -> None:
    first, second = caches
    for arguments, said in (
        (["--cache", second, "--cache", first, "--set", "corpus.take=9"], f"{first} lacks 2 of the 9 records of "),
        (["--cache", first, "--cache", second, "--set", "teachers.weights_global=[1]"], "has 1 factors for 2 teachers"),
        (["--cache", first, "--cache", second, "--set", "trainer.teacher=live"], "with several teachers"),
        (["--set", "teachers.caches=['nowhere']"], "nowhere: expected a cache"),
    ):
        refused = trained(capsys, *arguments)
        assert refused.code in (1, 2)
        assert said in refused.err
        assert "Traceback" not in refused.err
        assert not list(Path().glob("run/checkpoints/*"))
