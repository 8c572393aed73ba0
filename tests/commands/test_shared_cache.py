"""Experiments that share a cache: selections on the command line, runs gone on with, repair."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import teacher_cache
from cli.experiment.own_recipe import CONFIG_COPY
from tests.commands.test_stale_cache import SETTINGS, cloud
from tests.support.builds import tree
from tests.support.commands import Outcome, run

COUNT = 13


@pytest.fixture(autouse=True)
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An experiment of 13 shapes in shards of 4; nothing is built."""
    monkeypatch.chdir(tmp_path)
    Path("shapes").mkdir()
    for k in range(COUNT):
        np.save(f"shapes/{k:02d}.npy", cloud(k))
    Path("mine.toml").write_text(SETTINGS + "[cache]\nshapes_per_shard = 4\n")


def built(capsys: Any, *arguments: str) -> Path:
    answer = run(capsys, "cache", "build", "mine.toml", "--workers", "1", *arguments)
    assert answer.code == 0, answer.err
    return Path(answer.out.strip())


def trained(capsys: Any, *arguments: object) -> Outcome:
    return run(capsys, "pretrain", "mine.toml", "--out", "run", *arguments)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_run_on_a_share_goes_on_with_that_share_alone(capsys: Any) -> None:
    share = ("--set", "corpus.share=0.4")
    first = trained(capsys, *share)
    assert first.code == 0, first.err
    assert "on 5 shapes" in first.err
    cache = built(capsys)  # grows
    assert len(teacher_cache.open(cache)) == COUNT
    for arguments, said in (
        (("--set", "corpus.take=5"), "cache.shapes was "),
        ((*share, "--set", "corpus.share_seed=1"), "cache.shapes was "),
        (("--set", "corpus.share=0.7"), "cache.records was 5, is now 9"),
        ((), "cache.records was 5, is now 13"),
    ):
        refused = trained(capsys, *arguments, "--set", "trainer.epochs=2")
        assert refused.code == 1
        assert "belongs to a run with other settings" in refused.err
        assert said in refused.err
    more = trained(capsys, *share, "--set", "trainer.epochs=2")
    assert more.code == 0, more.err
    assert "5 shapes in" in more.err
    assert "which contains 8 more" in more.err
    assert "note: the experiment uses 5 of the 13 shapes in the cache" in more.err
    assert "resuming a student" in more.err
    again = run(capsys, "pretrain", "run/config.toml", "--out", "run")  # what the run says of itself repeats it
    assert again.code == 0, again.err
    assert "already complete: 2 epochs" in again.err
    named = trained(capsys, "--cache", cache, *share, "--set", "trainer.epochs=2")
    assert named.code == 0, named.err
    assert "already complete" in named.err


def test_a_selection_that_a_named_cache_lacks_is_refused(capsys: Any) -> None:
    cache = built(capsys, "--set", "corpus.take=6")
    refused = trained(capsys, "--cache", cache, "--set", "corpus.take=7")
    assert refused.code == 1
    assert "1 of its 7 shapes are not in the cache, first '06.npy'" in refused.err
    assert not Path("run").exists()
    plain = trained(capsys, "--cache", cache)
    assert plain.code == 0, plain.err
    assert "note: 7 of its 13 shapes are not in the cache; the experiment continues without them" in plain.err


def test_a_named_cache_is_stale_only_where_the_experiment_looks(capsys: Any) -> None:
    cache = built(capsys)
    np.save("shapes/12.npy", cloud(99))
    Path("shapes/11.npy").unlink()
    assert trained(capsys, "--cache", cache, "--set", "corpus.take=5").code == 0
    stale = trained(capsys, "--cache", cache, "--set", "corpus.take=12")
    assert stale.code == 1
    assert "1 shape changed since the cache was built: '12.npy'" in stale.err
    assert "1 shape is no longer in the corpus: '11.npy'" in stale.err


def test_wrong_selections_are_told_at_once(capsys: Any) -> None:
    wrong = trained(capsys, "--set", "corpus.share=2.0", "--set", "corpus.take=-1")
    assert wrong.code == 2
    assert "corpus.share = 2.0 is outside 0..1" in wrong.err
    assert "corpus.take = -1 is negative" in wrong.err
    many = trained(capsys, "--set", "corpus.take=14")
    assert many.code == 1
    assert "corpus.take = 14 is more than the 13 shapes of the corpus" in many.err


@pytest.mark.parametrize("damage", ["data", "receipt", "manifest"])
def test_repair_builds_what_was_there_and_no_more(capsys: Any, damage: str) -> None:
    """Of a share of the corpus: the rest of it has never been asked for."""
    cache = built(capsys, "--set", "corpus.share=0.7")
    before = tree(cache)
    flip(cache / {"data": "features/c.1.0.0.0", "receipt": "receipts/000001.json", "manifest": "manifest.json"}[damage])
    mended = run(capsys, "cache", "repair", cache)
    assert mended.code == 0, mended.err
    assert tree(cache) == before


def test_repair_brings_back_the_shapes_of_every_experiment(capsys: Any) -> None:
    Path("few.txt").write_text("12.npy\n03.npy\n07.npy\n")
    built(capsys, "--set", "corpus.take=6")
    cache = built(capsys, "--set", "corpus.only=few.txt")
    assert sorted(teacher_cache.open(cache).ids) == [f"{k:02d}.npy" for k in (0, 1, 2, 3, 4, 5, 7, 12)]
    assert "take = 6" in (cache / CONFIG_COPY).read_text()
    before = tree(cache)
    for shard in range(3):
        flip(cache / f"features/c.{shard}.0.0.0")
    mended = run(capsys, "cache", "repair", cache)
    assert mended.code == 0, mended.err
    assert tree(cache) == before
