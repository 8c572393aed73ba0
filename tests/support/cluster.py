"""A Dask cluster of separate processes, started by the console commands as a user would start them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.support.limits import HANG

DASK = Path(sys.executable).parent / "dask"


class Cluster:
    """``dask scheduler`` on loopback with a free port, and the workers that are added to it.

    folder   scratch: scheduler file, logs, the workers' own files
    address  of the scheduler
    """

    def __init__(self, folder: Path, environment: dict[str, str] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.environment = folder, environment or {}
        self.processes: list[subprocess.Popen[bytes]] = []
        file = folder / "scheduler.json"
        self.scheduler = self._start(
            "scheduler", "--host", "127.0.0.1", "--port", "0", "--scheduler-file", file, "--no-dashboard"
        )
        wait_for(lambda: file.exists() and file.stat().st_size > 0, "the scheduler's file", self)
        self.address: str = json.loads(file.read_text())["address"]

    def worker(self, *options: object, environment: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start ``dask worker`` in a folder of its own, without a nanny, unless `options` say otherwise."""
        name = f"worker-{len(self.processes)}"
        (self.folder / name).mkdir()
        return self._start(
            "worker", self.address, "--host", "127.0.0.1", "--no-dashboard", "--name", name, "--memory-limit", "0",
            "--local-directory", self.folder / name, *(options or ("--no-nanny", "--nthreads", "1")),
            environment=environment, cwd=self.folder / name,
        )  # fmt: skip

    def _start(
        self, *command: object, environment: dict[str, str] | None = None, cwd: Path | None = None
    ) -> subprocess.Popen[bytes]:
        with (self.folder / f"log-{len(self.processes)}.txt").open("wb") as log:
            process = subprocess.Popen(
                [str(DASK), *map(str, command)],
                cwd=cwd or self.folder,
                env=os.environ | self.environment | (environment or {}),
                stdout=log,
                stderr=log,
                start_new_session=True,  # a nanny and its worker end together
            )
        self.processes.append(process)
        return process

    def logs(self) -> str:
        return "\n".join(f"--- {log.name}\n{log.read_text()}" for log in sorted(self.folder.glob("log-*.txt")))

    def stop(self) -> None:
        for process in self.processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def cluster(folder: Path, environment: dict[str, str] | None = None) -> Iterator[Cluster]:
    """A scheduler without workers; all its processes are killed at the end."""
    started = Cluster(folder, environment)
    try:
        yield started
    finally:
        started.stop()


def wait_for(happened: Callable[[], bool], what: str, of: Cluster) -> None:
    """Wait until something has happened; an AssertionError with the logs when it does not."""
    end = time.monotonic() + HANG
    while not happened():
        assert time.monotonic() < end, f"waited {HANG} s for {what}\n{of.logs()}"
        time.sleep(0.02)
