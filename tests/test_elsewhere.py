"""What Windows lacks: all modules can be imported without it, and a cache can be written, locked and read."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from teacher_cache import system
from tests.support.elsewhere import FOR_ALL, FOR_CACHES

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("cuda", "teacher_cache", "pipeline", "trainer", "cli")


def without(code: str, *arguments: object, libraries: tuple[str, ...] = FOR_CACHES) -> str:
    """What code prints, in a process that has loaded libraries and hidden what Windows lacks."""
    begin = f"from tests.support.elsewhere import hide\nhide({libraries!r})\n"
    command = [sys.executable, "-c", begin + code, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_module_can_be_imported():
    files = [path.relative_to(ROOT).with_suffix("") for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
    names = [".".join(file.parts).removesuffix(".__init__") for file in files if file.name != "__main__"]
    assert {name.split(".")[0] for name in names} == set(ROOMS)
    code = (
        "import importlib, sys\nfor name in sys.argv[1:]:\n    importlib.import_module(name)\nprint(len(sys.argv) - 1)"
    )
    assert without(code, *names, libraries=FOR_ALL).strip() == str(len(names))


def test_the_test_hides_what_it_says():
    code = (
        "import os, signal\n"
        "for name in ('fcntl', 'resource'):\n"
        "    try:\n        __import__(name)\n    except ImportError:\n        print('no', name)\n"
        "print([name for name in ('O_NOFOLLOW', 'O_DIRECTORY', 'preadv') if hasattr(os, name)])"
    )
    assert without(code).splitlines() == ["no fcntl", "no resource", "[]"]


@pytest.mark.parametrize("format", ["zarr", "webdataset"])
def test_a_cache_is_written_and_read(tmp_path, format):
    code = (
        "import sys\nimport teacher_cache\nfrom teacher_cache import system\n"
        "from teacher_cache.config import CacheConfig\n"
        "from teacher_cache.testing import assert_same_record, build, make_record\n"
        "system._REMOVES_OPEN = False\n"
        "config = CacheConfig(format=sys.argv[2], shapes_per_shard=4)\n"
        "build(sys.argv[1], config, count=11)\nbuild(sys.argv[1], config, count=17)\n"
        "cache = teacher_cache.open(sys.argv[1])\n"
        "for i in range(17):\n    assert_same_record(cache[i], make_record(i), config)\n"
        "print(len(cache), teacher_cache.verify(sys.argv[1]))"
    )
    assert without(code, tmp_path / "cache", format).strip() == "17 []"
    assert not (tmp_path / "cache" / "tmp").exists()  # no lock is left behind


def test_locks_keep_others_out_and_end_with_their_owner(tmp_path):
    code = (
        "import os, sys, threading\nfrom pathlib import Path\nfrom teacher_cache import system\n"
        "path = Path(sys.argv[1])\n"
        "def opened():\n    return system.open_file(path, os.O_RDWR | os.O_CREAT, follow=False)\n"
        "first, second = opened(), opened()\n"
        "print(system.try_lock(first, wait=False), system.try_lock(second, wait=False))\n"
        "threading.Timer(0.3, os.close, [first]).start()\n"
        "print(system.try_lock(second, wait=True), path.exists())\n"
        "system._REMOVES_OPEN = False\nsystem.end_lock(path, second, remove=True)\nprint(path.exists())"
    )
    assert without(code, tmp_path / "a.lock").split() == ["True", "False", "True", "True", "False"]


def test_links_are_refused_where_open_cannot_refuse_them(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("file")
    code = (
        "import errno, os, sys\nfrom teacher_cache.system import open_file\n"
        "os.close(open_file(sys.argv[1], os.O_RDONLY, follow=True))\n"
        "try:\n    open_file(sys.argv[1], os.O_RDONLY, follow=False)\n"
        "except OSError as error:\n    print(error.errno == errno.ELOOP, error.filename)"
    )
    assert without(code, tmp_path / "link").split() == ["True", str(tmp_path / "link")]


def test_here_all_of_it_is_used():
    """On Linux and macOS nothing is given up for the others."""
    assert system._ALWAYS == os.O_CLOEXEC | os.O_NONBLOCK
    assert os.O_NOFOLLOW == system._NOFOLLOW
    assert os.O_DIRECTORY == system._DIRECTORY
    assert system._REMOVES_OPEN
