"""What all operators share: batches from 1 to 256, odd sizes, any strides, and the interpreter lock left to others."""

import ctypes
import threading
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from cuda import plain
from cuda.backproject import backproject, pixels
from cuda.chamfer import chamfer
from cuda.fps import farthest_point_sample
from cuda.gather import gather, group
from cuda.knn import knn
from cuda.project import project
from tests.support.kernels import cloud, implementations

BATCHES = (1, 3, 17, 256)


def clouds(batch: int, n: int = 37) -> np.ndarray:
    """[batch, n, 3], each of another kind and seed than its neighbours."""
    kinds = ("ball", "grid", "flat", "duplicates", "one place")
    return np.stack([cloud(kinds[i % len(kinds)], n, seed=i) for i in range(batch)])


CASES: dict[str, Callable[[int], tuple]] = {
    "fps": lambda B: (clouds(B), 11),
    "knn": lambda B: (clouds(B), clouds(B, 5), 7),
    "project": lambda B: (clouds(B),),
    "pixels": lambda B: (clouds(B), *plain.project(clouds(B), image_side=16, splat=1)[1:], 16),
    "backproject": lambda B: (
        np.random.default_rng(0).normal(size=(B, 3, 16, 5)).astype(np.float32),
        clouds(B, 9),
        *plain.project(clouds(B), image_side=16, splat=1)[1:],
        16,
    ),
    "chamfer": lambda B: (clouds(B, 7), clouds(B, 9)),
    "gather": lambda B: (clouds(B), np.random.default_rng(1).integers(0, 37, size=(B, 13))),
    "group": lambda B: (clouds(B), clouds(B, 5), np.random.default_rng(1).integers(0, 37, size=(B, 5, 3))),
}


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("operator", CASES)
def test_every_cloud_of_a_batch_is_treated_as_if_alone(operator, batch):
    arguments = CASES[operator](batch)
    settings = {"image_side": 16} if operator == "project" else {}
    plain_impl, *others = (p for p in implementations(operator, "plain", "numba", "host", "cuda") if not p.marks)
    expected = plain_impl.values[0](*arguments, **settings)
    assert others
    for other in others:
        got = other.values[0](*arguments, **settings)
        pairs = zip(got, expected, strict=True) if isinstance(expected, tuple) else [(got, expected)]
        for one, wanted in pairs:
            np.testing.assert_array_equal(one, wanted, err_msg=other.id)


def strided(x: Tensor) -> Tensor:
    """Equal to x, with its first two axes stored the other way round and a gap after every number."""
    room = x.new_zeros(x.shape[1], x.shape[0], *x.shape[2:], 2)
    room[..., 0] = x.transpose(0, 1)
    view = room[..., 0].transpose(0, 1)
    assert torch.equal(view, x)
    assert not view.is_contiguous()
    return view


def test_strides_do_not_matter():
    points, queries = torch.from_numpy(clouds(4)), torch.from_numpy(clouds(4, 9))
    _, geometry = project(points, image_side=16)
    moved = type(geometry)(*(strided(part) for part in geometry))
    maps = torch.randn(4, 3, 16, 5, generator=torch.Generator().manual_seed(0))
    idx = torch.randint(0, 37, (4, 9, 3), generator=torch.Generator().manual_seed(1))
    pairs = [
        (farthest_point_sample(points, 9), farthest_point_sample(strided(points), 9)),
        *zip(knn(points, queries, 5), knn(strided(points), strided(queries), 5), strict=True),
        (project(points, image_side=16)[0], project(strided(points), image_side=16)[0]),
        (pixels(queries, geometry, 16), pixels(strided(queries), moved, 16)),
        (
            backproject(maps, queries, geometry, image_side=16),
            backproject(strided(maps), strided(queries), moved, image_side=16),
        ),
        (
            backproject(maps.half(), queries, geometry, image_side=16),
            backproject(strided(maps.half()), queries, geometry, image_side=16),
        ),
        *zip(chamfer(points, queries), chamfer(strided(points), strided(queries)), strict=True),
        (gather(points, idx), gather(strided(points), strided(idx))),
        (group(points, queries, idx), group(strided(points), strided(queries), strided(idx))),
    ]
    for one, other in pairs:
        assert torch.equal(one, other)


LONG: dict[str, Callable[[Tensor], object]] = {
    "fps": lambda points: farthest_point_sample(points, 2048),
    "knn": lambda points: knn(points, points, 64),
    "project": lambda points: project(points),
    "chamfer": lambda points: chamfer(points, points),
    "backproject": lambda points: backproject(torch.zeros(len(points), 3, 196, 64), points, project(points[:, :2])[1]),
    "gather": lambda points: gather(points.repeat(1, 1, 40), torch.zeros(len(points), 4096, dtype=torch.int64)),
}


def share_of_longest_pause(run: Callable[[], object]) -> float:
    """The longest time that another thread did not get to run during a call, over the time of the call."""
    stamps: list[float] = []
    stop = threading.Event()

    def stamp() -> None:
        while not stop.is_set():
            stamps.append(time.perf_counter())
            time.sleep(0.001)

    other = threading.Thread(target=stamp)
    other.start()
    try:
        start = time.perf_counter()
        run()
        end = time.perf_counter()
    finally:
        stop.set()
        other.join()
    if end - start < 0.05:
        return 1.0  # too short to tell
    during = [start, *(t for t in stamps if start < t < end), end]
    return max(b - a for a, b in pairwise(during)) / (end - start)


@pytest.mark.parametrize("operator", LONG)
def test_another_thread_goes_on_while_an_operator_runs(operator, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)  # one call into compiled code, in this thread
    run = LONG[operator]
    points = torch.from_numpy(clouds(2, 2048))
    run(points)  # compiled
    start = time.perf_counter()
    run(points)
    seconds = max(time.perf_counter() - start, 1e-4)
    points = points.repeat(min(2048, int(0.4 / seconds) + 1), 1, 1)  # so many that a call takes about 0.4 s
    # A busy machine may hold the other thread up, or have made the calls look long; a held lock stops it every time.
    tries = [points] * 4 + [points.repeat(4, 1, 1)] * 16
    assert any(share_of_longest_pause(partial(run, batch)) < 0.5 for batch in tries)


@pytest.mark.skipif(not hasattr(ctypes.PyDLL(None), "usleep"), reason="no usleep in this C library")
def test_a_held_interpreter_lock_would_be_seen():
    assert share_of_longest_pause(lambda: ctypes.PyDLL(None).usleep(200_000)) > 0.9
