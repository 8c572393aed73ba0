"""Dask: local processes, one of which is killed, and a scheduler that someone else started."""

import os
import signal
import threading

import psutil
import pytest

from pipeline.build import schedulers
from pipeline.errors import BuildError
from tests.support.builds import COUNT, small_build, tree


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return tree(small_build(tmp_path_factory.mktemp("undisturbed"), workers=1).path)


def test_processes_give_the_same_bytes_although_one_is_killed(tmp_path, undisturbed):
    killed = threading.Event()

    def kill_a_worker(progress):
        if progress.shards_done == 1 and not killed.is_set():
            workers = [
                child
                for child in psutil.Process().children(recursive=True)
                if "spawn_main" in " ".join(child.cmdline())
            ]
            os.kill(workers[0].pid, signal.SIGKILL)
            killed.set()

    report = small_build(tmp_path, scheduler="processes", workers=2, cold=True, on_progress=kill_a_worker)
    assert killed.is_set()
    assert report.shapes == COUNT
    assert tree(report.path) == undisturbed


def test_a_scheduler_by_its_address(tmp_path, undisturbed):
    from dask.distributed import LocalCluster

    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, protocol="tcp://", dashboard_address=None
    ) as cluster:
        report = small_build(tmp_path, scheduler=cluster.scheduler_address)
    assert tree(report.path) == undisturbed


def test_a_scheduler_behind_tls_by_dasks_own_settings(tmp_path, undisturbed):
    """Both sides show a certificate of one authority, from files, as distributed.comm.tls names them."""
    import dask
    from distributed import LocalCluster
    from distributed.security import Security

    temporary = Security.temporary()
    ca, key, certificate = (tmp_path / name for name in ("ca.pem", "key.pem", "cert.pem"))
    ca.write_text(temporary.tls_ca_file)
    key.write_text(temporary.tls_client_key)
    certificate.write_text(temporary.tls_client_cert)
    settings = {"distributed.comm.require-encryption": True, "distributed.comm.tls.ca-file": str(ca)}
    for side in ("scheduler", "worker", "client"):
        settings |= {
            f"distributed.comm.tls.{side}.key": str(key),
            f"distributed.comm.tls.{side}.cert": str(certificate),
        }
    with (
        dask.config.set(settings),
        LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, protocol="tls://", dashboard_address=None,
            security=Security(),
        ) as cluster,
    ):  # fmt: skip
        assert cluster.scheduler_address.startswith("tls://")
        report = small_build(tmp_path, scheduler=cluster.scheduler_address)
    assert tree(report.path) == undisturbed


def test_a_scheduler_without_workers_is_told(tmp_path, monkeypatch):
    from dask.distributed import LocalCluster

    monkeypatch.setattr(schedulers, "CONNECT_SECONDS", 3)  # within which the scheduler itself must answer
    with (
        LocalCluster(n_workers=0, processes=False, protocol="tcp://", dashboard_address=None) as cluster,
        pytest.raises(BuildError, match=r"(?s)has had no worker for 3 s.*dask worker tcp://"),
    ):
        small_build(tmp_path, scheduler=cluster.scheduler_address)


def test_an_address_where_no_scheduler_is(tmp_path, monkeypatch):
    monkeypatch.setattr(schedulers, "CONNECT_SECONDS", 1)
    with pytest.raises(BuildError, match=r"(?s)tcp://127.0.0.1:9: no Dask scheduler answers.*dask scheduler"):
        small_build(tmp_path, scheduler="tcp://127.0.0.1:9")
