"""One small run of the whole path, shared by the tests of the commands."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.commands import call


@dataclass(frozen=True)
class Smoke:
    """A finished run of the smoke preset."""

    folder: Path
    cache: Path
    run_dir: Path
    arguments: tuple[str, ...]


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Smoke:
    folder = tmp_path_factory.mktemp("smoke")
    run_dir = folder / "run"
    arguments = ("pretrain", "smoke", "--set", f"cache.root={folder / 'caches'}", "--out", str(run_dir), "--no-report")
    assert call(arguments) == 0
    [cache] = (folder / "caches").iterdir()
    return Smoke(folder, cache, run_dir, arguments)
