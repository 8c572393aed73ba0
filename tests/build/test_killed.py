"""SIGKILL at any moment costs at most the shards in work: the rerun ends with the bytes of an undisturbed build."""

import multiprocessing
import os
import random
import signal
import time

import pytest

import teacher_cache
from tests.support.builds import COUNT, build_and_say, small_build, tree

KILLS = 6


@pytest.fixture(scope="module")
def builders():
    """A clean server that has imported everything, so that each builder starts in milliseconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.support.builds", "open_clip"])
    return context


@pytest.mark.parametrize(("format", "poses"), [("zarr", 1), ("webdataset", 1), ("zarr", 2)])
def test_killed_at_random_moments_and_run_again(tmp_path, builders, format, poses):
    moments = random.Random(format)
    whole = 0.0
    for attempt in range(KILLS):
        here, there = builders.Pipe(duplex=False)
        process = builders.Process(target=build_and_say, args=(tmp_path / "killed", format, poses, there))
        process.start()
        there.close()
        assert here.recv() >= 0  # it has opened the cache and counted what is there
        begun = time.perf_counter()
        if attempt == 0:
            here.recv()  # one shard at least, to learn how long one takes
            whole = 2 * (time.perf_counter() - begun)
        else:
            process.join(moments.uniform(0, whole))
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
        process.join()
    report = small_build(tmp_path / "killed", format=format, poses=poses)
    undisturbed = small_build(tmp_path / "undisturbed", format=format, poses=poses)
    assert report.shapes == COUNT
    assert tree(report.path) == tree(undisturbed.path)
    assert not (report.path / "tmp").exists()
    assert not list(teacher_cache.verify(report.path))
