"""Reports of caches: what was built, what was refused and how it looks, and what a rebuild would do."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import teacher_cache
from cli.actions.report_cache import report_cache
from cli.experiment.toml import to_toml
from cli.report.caches import Index, duplicates, reasons
from teacher_cache import CacheSchema, Quarantined
from tests.commands.test_report import Page, checked
from tests.support.browser import CHROMIUM, visit
from tests.support.builds import small_build
from tests.support.caches import small_cache
from tests.support.commands import run
from tests.support.corpora import ball
from tests.support.teachers import TINY_PROJECTION

NAMES = ("<script>alert(1)</script>", "'\"&amp;")  # two classes


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A cache of a folder of two classes with hostile names: 7 sound clouds, two of them the same, and 4 refused."""
    folder = tmp_path_factory.mktemp("built")
    for row in range(7):
        place = folder / "shapes" / NAMES[row % 2]
        place.mkdir(parents=True, exist_ok=True)
        np.savetxt(place / f"cloud{row}.xyz", ball(80, seed=row if row != 4 else 2), fmt="%.5f")
    place = folder / "shapes" / NAMES[0]
    line = np.linspace(0, 1, 90)[:, None] * np.array([[1.0, 2.0, 3.0]])
    np.savetxt(place / "line.xyz", line, fmt="%.5f")
    np.savetxt(place / "few.xyz", ball(5), fmt="%.5f")
    (place / "empty.xyz").write_bytes(b"")
    (place / "words.xyz").write_text("not a cloud\n" * 9)
    report = small_build(folder, corpus=f"folder:{folder / 'shapes'}?formats=xyz&pad=repeat", cache={"depth": "uint8"})
    return Path(str(report.path)), folder / "shapes"


def experiment_of(built: tuple[Path, Path]) -> Any:
    """The experiment of the cache, as far as a report asks."""
    from dataclasses import replace

    from cli.experiment.toml import load_experiment
    from tests.support.builds import POINTS

    cache, shapes = built
    found = load_experiment(
        "smoke",
        [f"corpus.uri='folder:{shapes}?formats=xyz&pad=repeat'", f"corpus.points={POINTS}", f"trainer.points={POINTS}"],
    )
    return replace(found, projection=TINY_PROJECTION, cache=replace(found.cache, root=str(cache.parent)))


def test_it_says_what_is_there_and_what_was_refused(built: tuple[Path, Path], tmp_path: Path) -> None:
    before = {path.name for path in built[0].rglob("*")}
    page = checked(report_cache(built[0], tmp_path, shapes=3, experiment=experiment_of(built)))
    assert {path.name for path in built[0].rglob("*")} <= before | {"stamps.json"}
    assert "7 shapes, 4 refused, complete" in page.text
    for name in NAMES:
        assert name in page.text
    assert page.tags.count("script") == 2
    assert "2 classes of 3 to 4 shapes" in page.text
    assert "all points lie on one line 1" in page.text
    assert "the file is empty 1" in page.text
    assert (
        "1 groups of shapes were made from the same content with the same label, 1 shapes more than once" in page.text
    )
    assert "11 shapes would stay as they are" in page.text
    pictures = {one.stem for one in (tmp_path / "pictures").iterdir()}
    assert {"refused-0", "refused-1"} == {
        name for name in pictures if name.startswith("refused")
    }  # the line and the few
    assert {f"shape-02-{kind}" for kind in ("cloud", "depth-2", "saliency-0")} <= pictures
    assert teacher_cache.open(built[0]).recipe.hash in page.text


def test_it_says_what_a_rebuild_would_do(built: tuple[Path, Path], tmp_path: Path) -> None:
    shapes = built[1] / NAMES[1]
    path, added = shapes / "cloud1.xyz", shapes / "new.xyz"
    kept, times = path.read_bytes(), path.stat()
    try:
        np.savetxt(path, ball(80, seed=50), fmt="%.5f")
        np.savetxt(added, ball(80, seed=51), fmt="%.5f")
        page = Page(report_cache(built[0], tmp_path, shapes=1, experiment=experiment_of(built)))
    finally:
        path.write_bytes(kept)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        added.unlink()
    assert "1 shape changed since the cache was built" in page.text
    assert "1 shape is new" in page.text
    assert "shards would be rebuilt" in page.text
    page = Page(report_cache(built[0], tmp_path, shapes=1))
    assert "not examined (--no-corpus)" in page.text
    assert "their corpus was not examined" in page.text


def test_the_command_takes_the_corpus_from_the_caches_notes(
    built: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = run(capsys, "cache", "report", built[0], "--out", tmp_path / "a", "--shapes", "1")
    assert outcome.code == 0
    assert "note: the corpus is not looked at" in outcome.err  # built without the command, which leaves the notes
    config = tmp_path / "mine.toml"
    config.write_text(to_toml(experiment_of(built)))
    outcome = run(capsys, "cache", "report", built[0], "--out", tmp_path / "b", "--shapes", "1", "--config", config)
    assert outcome.code == 0, outcome.err
    assert "11 shapes would stay" in Page(tmp_path / "b" / "index.html").text
    assert run(capsys, "cache", "report", built[0], "--config", "smoke", "--no-corpus").code == 2


def test_caches_of_one_shape_and_of_none_and_unfinished_ones(tmp_path: Path) -> None:
    schema = CacheSchema(points=40, views=3, image_side=16, patch_side=8, channels=5)
    one = small_cache(tmp_path / "one", 1, schema, depth="none", features="int8")
    page = checked(report_cache(one.path, tmp_path / "a"))
    assert "stores no depth images" in page.text
    tar = small_cache(tmp_path / "tar", 9, schema, format="webdataset")
    page = checked(report_cache(tar.path, tmp_path / "b", shapes=20))
    assert "tar shards" in page.text
    assert len(list((tmp_path / "b" / "pictures").glob("*-cloud.png"))) == 9
    (Path(str(tar.path)) / "manifest.json").unlink()
    page = checked(report_cache(tar.path, tmp_path / "c"))
    assert "the build is not finished" in page.text


def test_duplicates_and_reasons_are_counted() -> None:
    made_of = {"a": "1", "b": "2", "c": "1", "d": "3", "e": "3", "f": "3"}
    assert duplicates(Index(made_of=made_of)) == [["d", "e", "f"], ["a", "c"]]
    items = [Quarantined(id=str(k), source="", reason=f"{k} distinct points; expected at least 32") for k in range(3)]
    items.append(Quarantined(id="x", source="", reason="all points lie on one line"))
    assert reasons(items) == [("0 distinct points; expected at least 32", 3), ("all points lie on one line", 1)]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_a_browser_shows_it(built: tuple[Path, Path], tmp_path: Path) -> None:
    path = report_cache(built[0], tmp_path / "out", shapes=3, experiment=experiment_of(built))
    view = visit(path, tmp_path / "browser", width=390, dark=True)
    if folder := os.environ.get("I2P_SCREENSHOTS"):
        (Path(folder) / "cache-390-dark.png").write_bytes(view.png)
    assert view.errors == view.requests == []
    assert view.found["broken"] == view.found["blank"] == 0
    assert view.found["canvases"] == view.found["turnable"] == 5
    assert view.turned
    assert view.found["needed"] <= view.found["width"]
