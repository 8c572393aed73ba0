"""The CPU product is called from many threads, from forked workers, and with any number of its own threads."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from cuda.fps import farthest_point_sample
from cuda.knn import knn
from cuda.project import project
from cuda.twins import threads
from tests.support.kernels import cloud
from tests.support.limits import HANG

ROOT = Path(__file__).resolve().parents[2]
POINTS = torch.from_numpy(np.stack([cloud("ball", 300, seed=seed) for seed in range(5)]))


@pytest.fixture(autouse=True)
def several_threads(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)


def everything() -> list[torch.Tensor]:
    depth, geometry = project(POINTS, image_side=64)
    return [farthest_point_sample(POINTS, 50), *knn(POINTS, POINTS[:, :40], 8), depth, *geometry]


def test_many_callers_at_once_get_what_one_gets():
    expected = everything()
    with ThreadPoolExecutor(8) as pool:
        for result in pool.map(lambda _: everything(), range(64)):
            assert all(torch.equal(a, b) for a, b in zip(result, expected, strict=True))


def test_any_number_of_threads_gives_the_same_bytes(monkeypatch):
    expected = everything()
    for count in (1, 2, 3, 16):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=count: count)
        assert all(torch.equal(a, b) for a, b in zip(everything(), expected, strict=True))


@pytest.mark.parametrize("items", [0, 1, 3, 100])
def test_every_item_is_done_once(items):
    done = np.zeros(items, np.int64)

    def kernel(begin: int, end: int, out: np.ndarray) -> None:
        out[begin:end] += 1

    threads.for_each(items, kernel, done)
    assert (done == 1).all()


def test_a_failing_item_raises_in_the_caller():
    def kernel(begin: int, end: int) -> None:
        raise MemoryError(f"item {begin}")

    with pytest.raises(MemoryError, match="item"):
        threads.for_each(10, kernel)


def test_a_busy_pool_does_not_block():
    release = threading.Event()
    threads.for_each(2, lambda begin, end: None)
    pool = threads._executor(3)
    occupied = [pool.submit(release.wait, HANG) for _ in range(3)]
    try:
        threads.for_each(50, lambda begin, end: None)  # the caller does it all
        assert not any(task.done() for task in occupied)
    finally:
        release.set()


def test_nested_use_ends():
    threads.for_each(8, lambda begin, end: threads.for_each(8, lambda b, e: None))


class _Sampled(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 5

    def __getitem__(self, i: int) -> torch.Tensor:
        return farthest_point_sample(POINTS[i, None], 50)[0]


def test_in_forked_loader_workers_after_use_in_the_parent():
    expected = farthest_point_sample(POINTS, 50)
    loader = DataLoader(_Sampled(), batch_size=1, num_workers=2, multiprocessing_context="fork", timeout=HANG)
    assert torch.equal(torch.cat(list(loader)), expected)


FORK = """
import os, torch
from cuda.fps import farthest_point_sample
torch.get_num_threads = lambda: 4
points = torch.arange(7200.0).remainder(97).view(8, 300, 3)
expected = farthest_point_sample(points, 20)
child = os.fork()
if child == 0:
    os._exit(0 if torch.equal(farthest_point_sample(points, 20), expected) else 3)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


def test_the_pool_starts_afresh_in_a_forked_child():
    run = subprocess.run(
        [sys.executable, "-c", FORK], cwd=ROOT, capture_output=True, text=True, timeout=HANG, check=False
    )
    assert run.returncode == 0, run.stderr
