"""Clusters of separate processes, `dask scheduler` and `dask worker`: same bytes, and clear words when one dies."""

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import textwrap
import threading
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

import teacher_cache
from pipeline.build import driver as build_module
from pipeline.build import schedulers
from pipeline.build.entry import run_on_worker
from pipeline.build.plan import ShardTask
from pipeline.errors import BuildError
from tests.support.builds import COUNT, POINTS, small_build, tree
from tests.support.cluster import cluster, wait_for
from tests.support.commands import run
from tests.support.teachers import TINY_PROJECTION, tiny_teacher

# What a worker does is written down by a file that `dask worker --preload` runs in it before any task.
NOTES = """
    import json, os, time
    from pathlib import Path
    from pipeline.build import worker

    def note(**what):
        with open(os.environ["NOTES"], "a", buffering=1) as file:
            file.write(json.dumps({"pid": os.getpid()} | what) + "\\n")

    def load_teacher(*arguments):
        note(what="load")
        return worker.real_load(*arguments)

    def build_shard(task, *arguments, **options):
        note(what="begin", shard=task.shard)
        time.sleep(float(os.environ.get("DAWDLE", "0")))
        report = worker.real_build(task, *arguments, **options)
        note(what="end", shard=task.shard)
        return report

    if not hasattr(worker, "real_load"):  # a worker without a nanny runs this twice
        worker.real_load, worker.load_teacher = worker.load_teacher, load_teacher
        worker.real_build, worker.build_shard = worker.build_shard, build_shard
"""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return tree(small_build(tmp_path_factory.mktemp("undisturbed"), workers=1).path)


class Notes:
    def __init__(self, folder, program=NOTES):
        self.preload, self.file = folder / "notes.py", folder / "notes.jsonl"
        self.preload.write_text(textwrap.dedent(program))
        self.file.touch()

    def environment(self, **more):
        return {"NOTES": str(self.file), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))} | more

    def all(self, what):
        lines = [json.loads(line) for line in self.file.read_text().splitlines()]
        return [line for line in lines if line["what"] == what]


def small_config(tmp_path):
    """The settings of `small_build`, for the command."""
    teacher = tiny_teacher(tmp_path)
    config = tmp_path / "small.toml"
    config.write_text(
        f"""
        [corpus]
        uri = "synthetic:?count={COUNT}&seed=1"
        points = {POINTS}
        [projection]
        image_side = {TINY_PROJECTION.image_side}
        patch_side = {TINY_PROJECTION.patch_side}
        splat = {TINY_PROJECTION.splat}
        [teacher]
        architecture = "{teacher.architecture}"
        pretrained = "random"
        device = "cpu"
        seed = {teacher.seed}
        [cache]
        root = "{tmp_path / "by-command"}"
        shapes_per_shard = 5
        [trainer]
        points = {POINTS}
        [model]
        groups = [32, 16, 8]
        """
    )
    return config


def test_workers_of_one_and_of_four_threads_give_the_bytes_of_a_thread_build(tmp_path, undisturbed, capsys):
    notes = Notes(tmp_path)
    config = small_config(tmp_path)
    with cluster(tmp_path / "cluster", notes.environment()) as dask:
        dask.worker("--no-nanny", "--nthreads", "4", "--preload", notes.preload)
        dask.worker("--nanny", "--nthreads", "1", "--preload", notes.preload)
        wait_for(lambda: dask.logs().count("Registered to") == 2, "two workers", dask)
        outcome = run(capsys, "cache", "build", config, "--scheduler", dask.address)
        assert outcome.code == 0, outcome.err
        path = Path(outcome.out.strip())
        assert tree(path) == undisturbed
        assert re.search(r"time: read \d+%, project \d+%, teacher \d+%, write \d+%\n", outcome.err)
        built, loads = notes.all("end"), notes.all("load")
        assert sorted(line["shard"] for line in built) == [0, 1, 2, 3, 4]
        # One teacher a process that takes part, whatever its threads; and none is left over for the next build.
        assert Counter(line["pid"] for line in loads) == dict.fromkeys({line["pid"] for line in built}, 1)
        report = small_build(tmp_path, scheduler=dask.address)
    assert (report.shapes, report.teachers) == (COUNT, 0)
    assert tree(report.path) == undisturbed
    loads = notes.all("load")[len(loads) :]
    assert Counter(line["pid"] for line in loads) == dict.fromkeys({line["pid"] for line in notes.all("end")[5:]}, 1)
    assert not list((report.path / "logs").glob("driver-*"))


def test_the_command_says_where_the_time_went(tmp_path, capsys):
    config = small_config(tmp_path)
    outcome = run(capsys, "cache", "build", config, "--workers", "2")
    assert outcome.code == 0, outcome.err
    said = r"time: read \d+%, project \d+%, teacher \d+%, write \d+%; the teacher took \d+% of 2 lanes' time\n"
    assert re.search(said, outcome.err)
    assert "time: " not in run(capsys, "cache", "build", config).err  # nothing was built


def test_the_shard_of_a_killed_worker_is_done_by_another(tmp_path, undisturbed):
    notes = Notes(tmp_path)
    killed = []

    def kill_one_at_work():
        wait_for(lambda: len({line["pid"] for line in notes.all("begin")}) == 2, "two workers at work", dask)
        last = notes.all("begin")[-1]
        os.kill(last["pid"], signal.SIGKILL)
        killed.append(last)

    # One death is more than this scheduler takes, so the driver must hand the shard out again.
    strict = {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0", "DAWDLE": "0.7"}
    with cluster(tmp_path / "cluster", notes.environment(**strict)) as dask:
        for _ in range(2):
            dask.worker("--no-nanny", "--nthreads", "1", "--preload", notes.preload)
        wait_for(lambda: dask.logs().count("Registered to") == 2, "two workers", dask)
        killer = threading.Thread(target=kill_one_at_work)
        killer.start()
        report = small_build(tmp_path, scheduler=dask.address, retries=1)
        killer.join()
        (victim,) = killed
        ends = {line["shard"]: line["pid"] for line in notes.all("end")}
        assert ends[victim["shard"]] != victim["pid"]
        assert sorted(ends) == [0, 1, 2, 3, 4]
        assert tree(report.path) == undisturbed

        # Without another try the build stops and says why; what is committed stays.
        notes.file.write_text("")
        dask.worker("--no-nanny", "--nthreads", "1", "--preload", notes.preload)
        wait_for(lambda: dask.logs().count("Registered to") == 3, "a new worker", dask)
        killer = threading.Thread(target=kill_one_at_work)
        killer.start()
        grown = "synthetic:?count=60&seed=1"
        with pytest.raises(BuildError, match=r"(?s)shard \d+: the workers that ran it died .*run the build again"):
            small_build(tmp_path, scheduler=dask.address, retries=0, corpus=grown)
        killer.join()
    assert small_build(tmp_path, corpus=grown).shapes == 60
    assert not list(teacher_cache.verify(report.path))


def test_a_scheduler_that_is_killed_is_told_and_the_rest_is_built_later(tmp_path, undisturbed, monkeypatch):
    monkeypatch.setattr(schedulers, "CONNECT_SECONDS", 15)
    notes = Notes(tmp_path)
    seen = []

    def kill_the_scheduler(progress):
        seen.append(progress.shards_done)
        if progress.shards_done == 2:
            dask.scheduler.kill()

    with cluster(tmp_path / "cluster", notes.environment(DAWDLE="0.2")) as dask:
        dask.worker("--no-nanny", "--nthreads", "1", "--preload", notes.preload)
        lost = rf"(?s)connection to the Dask scheduler at {dask.address} was lost.*Committed shards are kept; start"
        with pytest.raises(BuildError, match=lost):
            small_build(tmp_path, scheduler=dask.address, on_progress=kill_the_scheduler)
    assert seen == [0, 1, 2]
    (path,) = (tmp_path / "caches").iterdir()
    assert 2 <= len(list((path / "receipts").iterdir())) < 5
    report = small_build(tmp_path)
    assert 1 <= report.built <= 3
    assert tree(report.path) == undisturbed


ELSEWHERE = """
    import os
    from pipeline.build import worker

    from teacher_cache.storage.opening import storage_at

    worker.storage_at = lambda directory: storage_at(os.environ["ROOT"] + "/" + directory.rpartition("/")[2])
"""

OTHER_FILES = """
    from pipeline.build import worker
    from pipeline.corpora import open_corpus

    worker.open_corpus = lambda uri, points: open_corpus("synthetic:?count=9&seed=1", points=points)
"""


@pytest.mark.parametrize(
    ("program", "said"),
    [
        (ELSEWHERE, r"this worker does not see the cache at .*: there is no recipe.json.*cache.root on a file system"),
        (OTHER_FILES, r"this worker sees other shapes at synthetic:.* than the driver \(9 here\).*same files"),
    ],
)
def test_a_worker_that_sees_other_files_says_so(tmp_path, program, said):
    notes = Notes(tmp_path, program)
    with cluster(tmp_path / "cluster", notes.environment(ROOT=str(tmp_path / "nothing"))) as dask:
        dask.worker("--no-nanny", "--nthreads", "1", "--preload", notes.preload)
        with pytest.raises(BuildError, match=rf"(?s)shard \d failed on tcp://127.0.0.1:\d+: {said}"):
            small_build(tmp_path, scheduler=dask.address)
        if program == ELSEWHERE:  # another machine's cache of the same name, which a build there once finished
            small_build(tmp_path / "nothing")
            (tmp_path / "nothing" / "caches").rename(tmp_path / "other")
            notes = Notes(tmp_path, program)
            dask.worker(
                "--no-nanny", "--nthreads", "1", "--preload", notes.preload,
                environment=notes.environment(ROOT=str(tmp_path / "other")),
            )  # fmt: skip
            dask.processes[1].kill()
            with pytest.raises(
                BuildError, match=r"this worker sees another cache than the driver at .*no logs/driver-"
            ):
                small_build(tmp_path, scheduler=dask.address)


def test_a_worker_without_this_package_is_told(tmp_path):
    hidden = tmp_path / "hidden" / "pipeline"
    hidden.mkdir(parents=True)
    (hidden / "__init__.py").write_text("")
    with cluster(tmp_path / "cluster") as dask:
        dask.worker("--no-nanny", environment={"PYTHONPATH": str(hidden.parent)})
        said = r"(?s)1 of 1 workers cannot take part, first tcp://.*ModuleNotFoundError.*pipeline.*need the same Python"
        with pytest.raises(BuildError, match=said):
            small_build(tmp_path, scheduler=dask.address)


def test_a_build_whose_workers_are_gone_says_so_and_waits_for_others(tmp_path, undisturbed, monkeypatch, caplog):
    monkeypatch.setattr(schedulers, "LONELY_SECONDS", 0.2)
    killed = threading.Event()

    def kill_and_replace():
        dask.processes[1].kill()
        wait_for(lambda: "has no worker left; waiting for a new one" in caplog.text, "a warning", dask)
        dask.worker()

    def kill_once(progress):
        if progress.shards_done == 1 and not killed.is_set():
            killed.set()
            threading.Thread(target=kill_and_replace).start()

    with cluster(tmp_path / "cluster", Notes(tmp_path).environment()) as dask:
        dask.worker()
        report = small_build(tmp_path, scheduler=dask.address, on_progress=kill_once)
    assert killed.is_set()
    assert tree(report.path) == undisturbed


class Captured(Exception):
    pass


@pytest.fixture
def job(tmp_path, monkeypatch):
    """The job that a build would send to a cluster."""

    def keep(job, *_):
        raise Captured(job)

    monkeypatch.setattr(build_module, "on_cluster", keep)
    with pytest.raises(Captured) as caught:
        small_build(tmp_path, scheduler="tcp://127.0.0.1:1")
    return caught.value.args[0]


def test_what_is_sent_is_small_and_needs_no_torch(tmp_path, job):
    task = ShardTask(shard=7, indices=tuple(range(7000, 8000)))
    sent = pickle.dumps((partial(run_on_worker, job), task))
    assert len(sent) < 8192  # of which the thousand indices are 3 kB
    assert len(pickle.dumps(partial(run_on_worker, job))) < 4096
    (tmp_path / "sent").write_bytes(sent)
    program = """
        import pickle, sys
        run, task = pickle.load(open(sys.argv[1], "rb"))
        heavy = {"torch", "numba", "open_clip", "zarr"} & set(sys.modules)
        print(run.func.__name__, len(task.indices), sorted(heavy))
    """
    said = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(tmp_path / "sent")],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert said == "run_on_worker 1000 []\n"


def test_a_module_in_the_graph_cannot_be_sent(tmp_path, job):
    from pipeline.teacher.tower import load_teacher

    with pytest.raises(TypeError, match="send its TeacherConfig"):
        pickle.dumps(partial(run_on_worker, replace(job, teacher=load_teacher(job.teacher))))


def test_paths_are_absolute_where_workers_may_stand_in_other_folders(tmp_path, job):
    from pipeline.build.job import elsewhere

    relative = replace(
        job,
        corpus=replace(job.corpus, uri="folder:shapes%3F/of mine?split=train"),
        teacher=replace(job.teacher, architecture="tiny.json", weights="w.pt"),
    )
    here = os.getcwd()
    sent = elsewhere(relative)
    assert sent.corpus.uri == f"folder:{here}/shapes%3F/of%20mine?split=train"
    assert (sent.teacher.architecture, sent.teacher.weights) == (f"{here}/tiny.json", f"{here}/w.pt")
    plain = replace(job, corpus=replace(job.corpus, uri="synthetic:?count=3"))
    assert elsewhere(plain).corpus.uri == "synthetic:?count=3"
    assert (
        elsewhere(replace(job, teacher=replace(job.teacher, architecture="ViT-B-16"))).teacher.architecture
        == "ViT-B-16"
    )
