"""Lanes: how many at once, who comes first, what is left when they close; and how many a build has."""

import threading
from concurrent.futures import CancelledError

import pytest
import torch

from pipeline.build import schedulers
from pipeline.build.lanes import Lanes
from pipeline.config import BuildConfig
from tests.support.limits import HANG


def test_the_lowest_order_goes_first_and_equals_in_the_order_they_came():
    lanes, held, gate, done = Lanes(1), threading.Event(), threading.Event(), []

    def hold():
        held.set()
        gate.wait(timeout=HANG)

    first = lanes.submit(9, hold)  # holds the only lane while the others queue
    assert held.wait(timeout=HANG)
    others = [
        lanes.submit(order, lambda name=name: done.append(name)) for order, name in [(2, "c"), (1, "a"), (1, "b")]
    ]
    gate.set()
    for future in (first, *others):
        future.result(timeout=HANG)
    lanes.close()
    assert done == ["a", "b", "c"]


def test_as_many_calls_as_there_are_lanes_run_at_once():
    lanes = Lanes(3)
    together = threading.Barrier(3)  # breaks unless three are in it at the same time
    futures = [lanes.submit(0, lambda: together.wait(timeout=HANG)) for _ in range(6)]
    assert sorted(future.result(timeout=HANG) for future in futures) == [0, 0, 1, 1, 2, 2]
    lanes.close()


def test_an_error_goes_to_the_one_who_waits_and_the_lane_lives_on():
    lanes = Lanes(1)
    with pytest.raises(ZeroDivisionError):
        lanes.submit(0, lambda: 1 // 0).result(timeout=HANG)
    assert lanes.submit(0, lambda: 5).result(timeout=HANG) == 5
    lanes.close()


def test_closing_ends_the_threads_and_cancels_what_waits():
    lanes, begun, gate = Lanes(1), threading.Event(), threading.Event()

    def work():
        begun.set()
        return gate.wait(timeout=HANG)

    working, waiting = lanes.submit(0, work), lanes.submit(1, lambda: 1)
    assert begun.wait(timeout=HANG)
    threading.Timer(0.1, gate.set).start()
    lanes.close()
    assert working.result(timeout=0) is True  # close has waited for it
    with pytest.raises(CancelledError):
        waiting.result(timeout=0)
    with pytest.raises(RuntimeError, match="these lanes are closed"):
        lanes.submit(0, lambda: 1)
    assert not [thread for thread in threading.enumerate() if thread.name == "lane-0" and thread in lanes._threads]
    lanes.close()


def test_no_lane_is_no_pool():
    with pytest.raises(ValueError, match="threads = 0; expected 1 or more"):
        Lanes(0)


@pytest.mark.parametrize(
    ("scheduler", "workers", "device", "shards", "groups", "expected"),
    [
        # one lane a core; one shard is taught, one is read, one is written
        ("threads", 0, "cpu", 100, 64, (1, 8, 4, 8)),
        ("threads", 2, "cpu", 100, 64, (1, 2, 3, 2)),
        ("threads", 2, "cpu", 1, 64, (1, 2, 1, 2)),  # never more shards than there are
        ("threads", 0, "cpu", 100, 2, (1, 8, 7, 8)),  # four shards of two groups fill eight lanes
        ("threads", 0, "cuda", 100, 2, (1, 2, 4, 1)),  # one forward pass at a time on a GPU
        ("processes", 0, "cpu", 100, 64, (8, 1, 2, 8)),
        ("processes", 3, "cpu", 100, 64, (3, 2, 2, 6)),
        ("processes", 0, "cpu", 2, 64, (2, 4, 2, 8)),
        ("processes", 0, "cuda", 100, 64, (2, 1, 2, 0)),
        ("tcp://host:8786", 5, "cpu", 100, 64, (0, 0, 0, 0)),  # a cluster has its own
    ],
)
def test_who_works_at_a_build(monkeypatch, scheduler, workers, device, shards, groups, expected):
    monkeypatch.setattr(schedulers.dask.system, "CPU_COUNT", 8)
    crew = schedulers.crew_for(BuildConfig(scheduler=scheduler, workers=workers), torch.device(device), shards, groups)
    assert (crew.processes, crew.lanes, crew.in_work, crew.teachers) == expected
