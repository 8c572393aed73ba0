"""The process that other people's decoders run in: what they do wrong refuses one file, and ours stays a bug."""

import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.corpora.formats import isolated
from pipeline.corpora.formats.geometry import Malformed, ReadOptions, Surface

GREEDY = "tests.support.greedy"


def ask(function, data=b"twelve bytes"):
    return isolated.call(GREEDY, function, data, Path("a.x"), ReadOptions())


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("memory", r"takes more than \d+ bytes of memory; its 12 bytes do not justify it"),
        ("crash", "ends the library that reads it with SIGSEGV"),
        ("refuse", "^holds 12 bytes$"),
        ("panic", "^cannot be read by the library: PanicException: index out of bounds$"),
    ],
)
def test_what_a_decoder_does_wrong_refuses_the_file(function, reason):
    with pytest.raises(Malformed, match=reason):
        ask(function)


def test_time_without_end_refuses_the_file(monkeypatch):
    monkeypatch.setattr(isolated, "FREE_SECONDS", 2)
    with pytest.raises(Malformed, match="takes more than 2 s to read; its 12 bytes do not justify it"):
        ask("time")


def test_a_bug_is_no_fault_of_the_file():
    with pytest.raises(RuntimeError, match=r"a\.x in a process of its own failed(.|\n)*KeyError: 'a fault of our own'"):
        ask("bug")


def test_a_killed_process_is_the_machines_fault():
    with pytest.raises(MemoryError, match="was killed"):
        ask("killed")


def test_a_geometry_comes_back_as_it_is():
    found = isolated.decode(GREEDY, bytes(10**6), Path("a.x"), ReadOptions(parts="b"))
    assert isinstance(found, Surface)
    np.testing.assert_array_equal(found.vertices, np.arange(15.0).reshape(5, 3))
    assert (found.faces.tolist(), found.parts.tolist()) == ([[0, 1, 4], [2, 3, 4]], [1, 0])
    assert (found.part_names, found.notes) == (("a", "b"), {"x": 2})


def test_files_of_the_working_folder_are_not_imported(tmp_path, monkeypatch):
    (tmp_path / "struct.py").write_text("raise SystemExit(9)")
    (tmp_path / "numpy.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Malformed, match=r"^holds 12 bytes$"):
        ask("refuse")


def test_a_library_that_is_not_there_is_named_with_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "laspy", None)
    for name in ("laspy", "no_library_of_this_name"):
        with pytest.raises(
            Malformed, match=rf"is a file, and {name}, .* not installed: pip install .i2p-pretrain\[form"
        ):
            isolated.need(name, "is a file")
    isolated.need("numpy", "is a file")
