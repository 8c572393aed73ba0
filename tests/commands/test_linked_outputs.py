"""Links inside the folders that `i2p teacher train` and `i2p study` write into: refused before anything is written."""

from pathlib import Path

import pytest

from cli.study.plan import Run
from cli.study.worker import do
from teacher_cache.errors import CacheError
from tests.support.commands import run


def test_teacher_train_draws_no_views_through_a_link(tmp_path: Path, capsys) -> None:
    (tmp_path / "victim").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "views").symlink_to(tmp_path / "victim")
    outcome = run(capsys, "teacher", "train", "--out", tmp_path / "out", "--set", "views.shapes=72")
    assert outcome.code == 1
    assert "views: expected a folder, found a link to" in outcome.err
    assert list((tmp_path / "victim").iterdir()) == []


@pytest.mark.parametrize("linked", ["embedded", "embedded/full", "embedded/full/seed-0"])
def test_a_study_runs_in_no_folder_behind_a_link(tmp_path: Path, linked: str) -> None:
    (tmp_path / "victim").mkdir()
    link = tmp_path / "out" / linked
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / "victim")
    folder = tmp_path / "out" / "embedded" / "full" / "seed-0"
    planned = Run("full", "embedded", 0, "smoke", (), "embedded-1", (), folder, "{}")
    with pytest.raises(CacheError, match="expected a folder, found a link to"):
        do(planned, tmp_path / "no-cache")
    assert list((tmp_path / "victim").iterdir()) == []
