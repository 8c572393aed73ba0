"""Compiled twins are kept and shared between processes, and an installation that cannot be written works too."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.limits import HANG

ROOT = Path(__file__).resolve().parents[2]
OPERATOR = """
import sys, torch
sys.path.insert(0, sys.argv[1])
import cuda.gather, cuda.twins.gather
assert cuda.gather.__file__.startswith(sys.argv[1]), cuda.gather.__file__
print(cuda.gather.gather(torch.arange(6.0).view(1, 2, 3), torch.tensor([[1, 0]])).flatten().tolist())
print(sum(cuda.twins.gather.gather.stats.cache_hits.values()))
"""
# The same compiled routine as the operator calls it, without torch, which takes two seconds to import.
TWIN = """
import sys
import numpy as np
sys.path.insert(0, sys.argv[1])
from cuda.twins import gather
assert gather.__file__.startswith(sys.argv[1]), gather.__file__
values, idx, rows = np.arange(6, dtype=np.float32).reshape(1, 2, 3), np.array([[1, 0]]), np.zeros((1, 2, 3), np.float32)
gather.gather(0, 1, values, idx, 1, rows, np.zeros(1, np.bool_))
print(rows.flatten().tolist())
print(sum(gather.gather.stats.cache_hits.values()))
"""
ANSWER = "[3.0, 4.0, 5.0, 0.0, 1.0, 2.0]"


@pytest.fixture
def installed(tmp_path):
    """A copy of the package's folder, without what is compiled."""
    shutil.copytree(ROOT / "cuda", tmp_path / "site" / "cuda", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "site"


def start(site: Path, program: str = TWIN, **environment: str) -> subprocess.Popen:
    clean = {key: value for key, value in os.environ.items() if key != "NUMBA_CACHE_DIR"}
    command = [sys.executable, "-B", "-c", program, str(site)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=site, env=clean | environment, **pipes)


def finish(process: subprocess.Popen) -> tuple[str, int, str]:
    out, error = process.communicate(timeout=HANG)
    assert process.returncode == 0, error
    answer, hits = out.splitlines()
    return answer, int(hits), error


def test_processes_that_compile_at_once_share_one_cache(installed):
    for process in [start(installed) for _ in range(3)]:
        assert finish(process)[0] == ANSWER
    assert list((installed / "cuda" / "twins" / "__pycache__").glob("gather.gather-*.nbi"))
    assert finish(start(installed))[:2] == finish(start(installed, OPERATOR))[:2] == (ANSWER, 1)


def test_an_installation_and_a_home_that_cannot_be_written(installed, tmp_path):
    (installed / "cuda" / "twins" / "__pycache__").touch()  # a file: no folder can be made in its place
    (tmp_path / "file").touch()
    nowhere = {"HOME": str(tmp_path / "file"), "XDG_CACHE_HOME": str(tmp_path / "file"), "TMPDIR": str(tmp_path)}
    answer, hits, error = finish(start(installed, **nowhere))
    assert (answer, hits) == (ANSWER, 0)
    assert "every process compiles the operators again; set NUMBA_CACHE_DIR to a writable folder" in error
    assert not list(tmp_path.glob("i2p-numba-*")), "it is removed at the end"
    named = nowhere | {"NUMBA_CACHE_DIR": str(tmp_path / "named")}
    assert finish(start(installed, **named))[:2] == (ANSWER, 0)
    assert finish(start(installed, **named))[1] == 1
