"""The benchmark of readers: its files hold what they should, and a library that is absent is named."""

import json

import numpy as np
import pytest

from benchmarks import bench_readers
from benchmarks.bench_readers import KINDS, Kind, check, large_meshes, ours, rows, small_meshes


@pytest.mark.parametrize("name", KINDS)
def test_its_files_are_read_as_what_was_written(tmp_path, name):
    [small], [large] = small_meshes(1), large_meshes(1, 7)
    assert len(large[1]) == 2 * 6 * 6
    for mesh in (small, large):
        path = tmp_path / f"a{KINDS[name].suffix}"
        path.write_bytes(KINDS[name].write(mesh))
        check(path, mesh, ours)
        with pytest.raises(AssertionError):
            check(path, (mesh[0] * np.float32(1.01), mesh[1]), ours)


def test_a_library_that_is_absent_is_named_and_the_others_run(tmp_path, monkeypatch, capsys):
    def never(path):
        raise AssertionError

    others = (("nowhere", "no_such_package_at_all", never), ("numpy.load", "numpy", bench_readers.with_load))
    monkeypatch.setitem(KINDS, "NPY", Kind(bench_readers.npy, ".npy", others))
    [row] = rows(tmp_path, {"small": small_meshes(3)}, ["NPY"], 4)
    assert set(row["rates"]) == {"floor", "ours", "numpy.load"}
    low, middle, high = row["ratios"]["numpy.load"]
    assert 0 < low <= middle <= high
    bench_readers.print_row(row)
    said = capsys.readouterr().out
    assert "numpy.load" in said
    assert "nowhere: not run, it is not installed (pip install no_such_package_at_all)" in said
    assert json.loads(json.dumps(row)) == row
    assert list(tmp_path.iterdir()) == []
