"""The whole way with the cache in a bucket: build on threads and processes, look into it, repair it, train from it."""

import json
from pathlib import Path

import pytest

import teacher_cache
from tests.support.builds import COUNT, small_build
from tests.support.commands import run
from tests.support.servers import S3


def test_threads_and_processes_build_the_bytes_of_a_folder(tmp_path: Path, s3: S3) -> None:
    from teacher_cache.testing import tree

    local = small_build(tmp_path)
    for scheduler in ("threads", "processes"):
        root = s3.folder()
        seen: list[int] = []
        report = small_build(
            tmp_path,
            scheduler=scheduler,
            cache={"root": root},
            on_progress=lambda p, seen=seen: seen.append(p.shapes_done),
        )
        assert str(report.path) == f"{root}/{Path(str(local.path)).name}"
        assert seen[-1] == COUNT
        assert s3.tree(str(report.path)) == tree(str(local.path))
    assert small_build(tmp_path, cache={"root": root}).already_complete


def test_commands_take_urls(tmp_path: Path, s3: S3, capsys: pytest.CaptureFixture[str]) -> None:
    root = s3.folder()
    settings = ["--set", f"cache.root={root}", "--set", "corpus.uri=synthetic:?count=36&seed=0"]
    built = run(capsys, "cache", "build", "smoke", *settings)
    assert built.code == 0, built.err
    url = built.out.strip()
    assert url.startswith(f"{root}/synthetic-")
    assert "cache complete" in run(capsys, "cache", "build", "smoke", *settings).err
    assert "complete" in run(capsys, "cache", "info", url).out
    assert url.rpartition("/")[2] in run(capsys, "cache", "list", root).out
    assert run(capsys, "cache", "verify", url).code == 0
    before = s3.tree(url)
    damaged = next(path for path in sorted(before) if path.startswith("features/c."))
    s3.put(f"{url}/{damaged}", before[damaged][:-1])
    found = run(capsys, "cache", "verify", url)
    assert found.code == 1
    assert damaged in found.out
    repaired = run(capsys, "cache", "repair", url)
    assert repaired.code == 0, repaired.err
    assert s3.tree(url) == before
    assert teacher_cache.verify(url) == []
    picture = tmp_path / "views.png"
    assert run(capsys, "cache", "render", url, "--shape", "0", "--out", str(picture)).code == 0
    assert picture.stat().st_size > 1000


def test_training_from_a_bucket_is_training_from_a_folder(
    tmp_path: Path, s3: S3, capsys: pytest.CaptureFixture[str]
) -> None:
    losses = []
    for name, root in (("local", str(tmp_path / "caches")), ("remote", s3.folder())):
        outcome = run(
            capsys, "pretrain", "smoke", "--no-report", "--out", str(tmp_path / name), "--set", f"cache.root={root}",
            "--set", "corpus.uri=synthetic:?count=32&seed=0", "--set", "trainer.epochs=1",
            "--set", "evaluation.train=", "--set", "evaluation.test=",
        )  # fmt: skip
        assert outcome.code == 0, outcome.err
        lines = [json.loads(line) for line in (tmp_path / name / "train.jsonl").read_text().splitlines()]
        losses.append([line["loss_3d"] for line in lines if "loss_3d" in line])
    assert losses[0]
    assert losses[0] == pytest.approx(losses[1], rel=0, abs=0)


def test_a_missing_bucket_is_an_error_without_a_traceback(s3: S3, capsys: pytest.CaptureFixture[str]) -> None:
    answer = run(capsys, "cache", "build", "smoke", "--set", "cache.root=s3://nowhere/caches")
    assert answer.code == 1
    assert "Create the bucket" in answer.err
    assert "Traceback" not in answer.err
