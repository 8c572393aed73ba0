"""What a manifest says of refused shapes holds wherever the corpus lies: no path of the machine is in it."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.build.shard import _quarantined as quarantine_entry
from pipeline.corpora import ShapeError
from tests.support.builds import small_build, tree


def corpus_of_faults(folder: Path) -> None:
    """Sound shapes, and one that is refused in each of several ways and formats."""
    rng = np.random.default_rng(0)
    group = folder / "thing"
    group.mkdir(parents=True)
    for i in range(12):
        np.save(group / f"sound{i}.npy", rng.normal(size=(80, 3)).astype(np.float32))
    np.save(group / "nan.npy", np.full((80, 3), np.nan, np.float32))
    np.save(group / "shape.npy", np.zeros((4, 4, 4), np.float32))
    (group / "cut.npy").write_bytes((group / "sound0.npy").read_bytes()[:40])
    (group / "empty.off").write_text("")
    (group / "cut.off").write_text("OFF\n8 6 12\n0 0 0\n")
    (group / "odd.obj").write_text("f 1 2 3\n")
    (group / "cut.ply").write_text("ply\nformat ascii 1.0\nelement vertex 9\n")
    (group / "cut.stl").write_bytes(b"\0" * 90)
    (group / "words.xyz").write_text("here are no numbers\n" * 90)
    np.savez(group / "other.npz", nothing=np.zeros(3))


@pytest.mark.parametrize("resolved", [True, False])
def test_no_path_of_the_machine_is_in_an_entry_and_the_manifest_is_the_same_anywhere(
    tmp_path: Path, resolved: bool
) -> None:
    corpus_of_faults(tmp_path / "one" / "shapes")
    shutil.copytree(tmp_path / "one", tmp_path / "elsewhere" / "deeper")
    places = [tmp_path / "one" / "shapes", tmp_path / "elsewhere" / "deeper" / "shapes"]
    if not resolved:  # as a link, and from a folder beside it
        (tmp_path / "link").symlink_to(tmp_path / "one")
        places[0] = tmp_path / "link" / "shapes"
    trees: list[dict[str, str]] = []
    for number, place in enumerate(places):
        report: Any = small_build(tmp_path / f"build{number}", corpus=f"folder:{place}", max_refused=1.0)
        entries = report.quarantined
        assert len(entries) >= 8
        for entry in entries:
            said = f"{entry.source} {entry.reason}"
            assert str(tmp_path) not in said
            assert "/tmp/" not in said
            assert not entry.source.startswith("/")
            assert entry.id.startswith("thing/")
        trees.append(tree(report.path))
    assert trees[0] == trees[1]


@pytest.mark.parametrize("spelt", ["as given", "resolved"])
def test_a_reason_that_names_files_names_them_within_the_corpus(tmp_path: Path, spelt: str) -> None:
    """As one that wants a buffer or a material beside it does, whichever way its reader spelt the path."""
    (tmp_path / "real" / "shapes").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    given = tmp_path / "link" / "shapes"
    used = given if spelt == "as given" else given.resolve()
    error = ShapeError(f"{used}/a/b.gltf", f"wants {used}/a/b.bin, and {used}/c.png")
    entry = quarantine_entry("a/b", error, f"folder:{given}")
    assert (entry.source, entry.reason) == ("a/b.gltf", "wants a/b.bin, and c.png")
