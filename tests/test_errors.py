"""One base error a room: whoever uses a room as a library catches all that it raises on purpose by one name."""

import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

from cli.main import _OWN, _expected

ROOT = Path(__file__).resolve().parents[1]
# Signals between two functions of one room, caught before anybody outside sees them.
INSIDE = {"BadBytes", "BuildStopped", "HttpStatus", "Malformed", "ReaderMissing", "TooLarge"}


def own_errors(room):
    """The exception classes that the modules of a room define, private ones left out."""
    modules = [importlib.import_module(info.name) for info in pkgutil.walk_packages([str(ROOT / room)], f"{room}.")]
    classes = {v for module in modules for v in vars(module).values() if isinstance(v, type)}
    ours = {c for c in classes if c.__module__.startswith(f"{room}.") and not c.__name__.startswith("_")}
    return {c for c in ours if issubclass(c, Exception)}


@pytest.mark.parametrize(("module", "name"), _OWN.items())
def test_every_error_of_a_room_has_its_base_and_is_no_bug(module, name):
    base = getattr(importlib.import_module(module), name)
    errors = own_errors(module.split(".")[0])
    assert {error for error in errors if not issubclass(error, base)} == {e for e in errors if e.__name__ in INSIDE}
    ours = [error for error in errors if issubclass(error, base)]
    assert len(ours) > 5
    assert all(_expected(error.__new__(error)) for error in ours)


def test_what_is_no_room_s_own_is_a_bug():
    assert not any(map(_expected, (ValueError("x"), KeyError("x"), RuntimeError("x"), OSError("no errno"))))
    assert _expected(OSError(28, "No space left on device"))


def test_telling_loads_no_room():
    code = (
        "import sys\nfrom cli.main import _OWN, _expected\nassert not _expected(ValueError('x'))\n"
        "sys.exit(str({name for name in sys.modules if name.split('.')[0] in {o.split('.')[0] for o in _OWN}} or 0))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "0", done.stderr
