"""A disk that fills up or fails at any one call: nothing half-done counts, and a rerun gives the same bytes."""

import errno
from pathlib import Path

import pytest

import pipeline.build.shard
from pipeline.errors import BuildError
from teacher_cache import CacheWriter
from tests.support.builds import small_build, tree
from tests.support.disk_faults import sweep
from tests.support.full_disk import may_mount, on_small_disks

NO_MOUNT = "mounting a tmpfs is not permitted here"  # tests/conftest.py knows this reason


@pytest.mark.parametrize(("format", "stride"), [("webdataset", 1), ("zarr", 13)])
@pytest.mark.parametrize(("error", "full"), [(errno.EIO, False), (errno.ENOSPC, True)], ids=["one-error", "full"])
def test_any_call_may_fail_and_the_rerun_mends_it(
    tmp_path: Path, format: str, stride: int, error: int, full: bool
) -> None:
    """Creating, writing, syncing, renaming, removing: the n-th call of a build fails, for every n (zarr: each 13th)."""
    outcomes = sweep(tmp_path, format, error, full=full, stride=stride)
    assert len(outcomes) > 20, "the calls are being counted"
    raised = [outcome for outcome in outcomes if outcome["raised"] is not None]
    assert {outcome["raised"] for outcome in raised} == {error}
    # What may fail unseen is cleaning up, and making a folder or opening a lock that a second try makes.
    assert len(raised) >= len(outcomes) * 0.7
    assert outcomes[-1]["raised"] is None
    assert outcomes[-1]["finished"]
    if full:  # everything before the manifest needs space, so without an error there is a manifest
        assert all(outcome["finished"] for outcome in outcomes if outcome["raised"] is None)


@pytest.mark.parametrize("format", ["zarr", "webdataset"])
@pytest.mark.parametrize("kind", ["pages", "inodes"])
def test_a_disk_that_is_too_small_by_any_amount(tmp_path: Path, kind: str, format: str) -> None:
    """A real tmpfs, larger by a page or a file each time, until a build fits; each is enlarged and built on."""
    if not may_mount(tmp_path / "probe"):
        pytest.skip(NO_MOUNT)
    outcomes = on_small_disks(tmp_path, kind, format)
    assert [outcome["said"] for outcome in outcomes[:-1]] == ["No space left on device"] * (len(outcomes) - 1)
    assert outcomes[-1]["said"] is None
    assert len(outcomes) > 8


def test_a_build_on_a_full_disk_says_so_although_its_log_is_full_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.build.shard, "write_shard", full)
        patch.setattr(CacheWriter, "log", full)
        with pytest.raises(BuildError) as caught:
            small_build(tmp_path / "full")
    said = str(caught.value)
    assert "failed: OSError: [Errno 28] No space left on device" in said
    assert "The traceback could not be written to " in said
    assert "run the build again to resume" in said
    assert tree(small_build(tmp_path / "full").path) == tree(small_build(tmp_path / "whole").path)
