"""Reports of runs: the page opens from disk, asks for nothing, shows every picture, and says what it cannot show."""

import base64
import io
import json
import os
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch

import teacher_cache
from cli.actions.report import report_runs
from cli.report.charts import confusion_chart, map_chart, run_curves
from cli.report.runs import cache_for, embed, open_run
from tests.support.browser import CHROMIUM, visit
from tests.support.caches import write_cache
from tests.support.commands import run
from tests.support.training import MODEL, SCHEMA, train, training_cache
from trainer.config import EvaluationConfig
from trainer.downstream.embedding import EMBEDDING
from trainer.downstream.features import encode, model_encoder

SCRIPT = "</script><script>document.title='owned'</script>"
IMAGE = '<img src="http://example.invalid/x.png" onerror="document.title=1">'
SETTINGS = EvaluationConfig(
    train="synthetic:?count=32&seed=1&split=train", test="synthetic:?count=16&seed=1&split=test",
    stored_points=96, points=96, seeds=2, grid=(1.0,), feature="top",
)  # fmt: skip


class Page(HTMLParser):
    """Every address, picture and script of a page, and its text."""

    def __init__(self, path: Path):
        super().__init__()
        self.pictures: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.clouds: list[dict[str, Any]] = []
        self._in = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = {name: value or "" for name, value in attrs}
        self._in = tag if tag in ("script", "style") else ""
        if values.get("id") == "clouds":
            self._in = "clouds"
        self.ids += [values["id"]] if "id" in values else []
        self.pictures += [values["src"]] if tag == "img" else []
        self.addresses += [values[name] for name in ("href", "src", "srcset", "action") if name in values]
        assert not [name for name in values if name.startswith("on")]

    def handle_endtag(self, tag: str) -> None:
        self._in = ""

    def handle_data(self, data: str) -> None:
        if self._in == "clouds":
            self.clouds = json.loads(data)
        elif not self._in:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def checked(path: Path) -> Page:
    """A page whose pictures decode, whose links lead nowhere else, and whose PNGs beside it are those on it."""
    page = Page(path)
    assert page.pictures
    assert all(one.startswith(("data:", "#")) for one in page.addresses)
    assert {one[1:] for one in page.addresses if one.startswith("#")} <= set(page.ids)
    embedded = {base64.b64decode(one.removeprefix("data:image/png;base64,"), validate=True) for one in page.pictures}
    for data in embedded:
        image = matplotlib.image.imread(io.BytesIO(data), format="png")
        assert image.shape[2] == 4
        assert image[..., 3].max() > 0, "a picture of nothing"
    assert {one.read_bytes() for one in (path.parent / "pictures").iterdir()} == embedded
    for cloud in page.clouds:
        assert len(base64.b64decode(cloud["p"])) == 6 * cloud["n"]
        assert len(base64.b64decode(cloud["c"])) == 3 * cloud["n"]
        assert len(base64.b64decode(cloud["s"])) == cloud["n"] > 0
    css = (Path(__file__).parents[2] / "cli/report/templates/page.css").read_text()
    assert "url(" not in css
    assert "@import" not in css
    return page


@pytest.fixture(scope="module")
def nasty(tmp_path_factory: pytest.TempPathFactory) -> tuple[teacher_cache.Cache, Path]:
    """A cache of shapes and classes with hostile names, and a run on it."""
    folder = tmp_path_factory.mktemp("nasty")
    plain = training_cache(folder / "plain", 12)
    records = [replace(plain[row], id=f"{SCRIPT}\x1b[2J{row}") for row in range(len(plain))]
    cache = write_cache(folder / "cache", records, SCHEMA, label_names=(IMAGE, "b$a$d&amp;"), depth="none")
    run_dir = folder / "<b>run"
    train(cache, run_dir, epochs=1, evaluation=SETTINGS)
    return cache, run_dir


@pytest.fixture(scope="module")
def nasty_page(nasty: tuple[teacher_cache.Cache, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache, run_dir = nasty
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")}
    path = report_runs([run_dir], tmp_path_factory.mktemp("page"), caches=[cache], shapes=3)
    assert {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")} == before
    return path


def test_hostile_names_are_text(nasty_page: Path) -> None:
    page = checked(nasty_page)
    assert page.tags.count("script") == 2
    for name in (SCRIPT, IMAGE, "b$a$d&amp;", "\\x1b[2J", "<b>run"):
        assert name in page.text, name
    assert len(page.ids) == len(set(page.ids))


def test_it_says_everything_of_a_run(nasty: tuple[teacher_cache.Cache, Path], nasty_page: Path) -> None:
    cache, run_dir = nasty
    page = Page(nasty_page)
    metrics = json.loads((run_dir / "metrics.json").read_text())
    for row in metrics["evaluation"]["rows"].values():
        assert f"{100 * row['accuracy']:.1f} ± {100 * row['spread']:.1f} %" in page.text
    assert cache.recipe.hash in page.text
    names = {one.stem for one in (nasty_page.parent / "pictures").iterdir()}
    kinds = {re.sub(r"^run-0-shape-\d\d-", "", name) for name in names if "-shape-" in name}
    levels = {f"level-{k}" for k in range(MODEL.levels)}
    assert kinds == levels | {"cloud", "truth", "reconstruction", "teacher", "teacher-visible", "student"} | {
        f"saliency-{view}" for view in range(3)
    }
    assert {"run-0-map", "run-0-confusion", "curve-accuracy", "curve-0"} <= names
    assert len([name for name in names if name.endswith("-cloud")]) == 3
    assert len([name for name in names if "-near-" in name]) == 3 * 6
    assert re.search(r"training, 1 epochs .* shapes/s, .* GiB", page.text)


def test_the_same_run_gives_the_same_page(
    nasty: tuple[teacher_cache.Cache, Path], nasty_page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, run_dir = nasty
    launch = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29400"}
    for name, value in launch.items():  # as rank 0 whose fellow has ended
        monkeypatch.setenv(name, value)
    shutil.copytree(nasty_page.parent, tmp_path / "out")
    (tmp_path / "out" / "index.html").unlink()
    (tmp_path / "out" / "pictures" / "run-0-shape-09-cloud.png").write_bytes(b"of an earlier report")
    (tmp_path / "out" / "pictures" / "notes.TXT").write_text("someone's own")
    again = report_runs([run_dir], tmp_path / "out", caches=[cache], shapes=3)
    assert again.read_bytes() == nasty_page.read_bytes()
    left = {one.name for one in (tmp_path / "out" / "pictures").iterdir()}
    assert left == {one.name for one in (nasty_page.parent / "pictures").iterdir()} | {"notes.TXT"}


def test_runs_stand_side_by_side_over_the_same_shapes(nasty: tuple[teacher_cache.Cache, Path], tmp_path: Path) -> None:
    cache, first = nasty
    train(cache, tmp_path / "second", epochs=2, learning_rate=0.002)  # not evaluated
    page = checked(report_runs([first, tmp_path / "second"], tmp_path / "out", caches=[cache], shapes=2))
    assert "2 runs" in page.text
    assert "trainer.learning_rate 0.001 0.002" in page.text
    assert "second: nothing is evaluated" in page.text
    assert f"12 shapes of the cache, {cache.path}" in page.text
    names = sorted(one.name for one in (tmp_path / "out" / "pictures").glob("run-*-shape-*-truth.png"))
    assert names == [f"run-{run}-shape-{place:02}-truth.png" for run in range(2) for place in range(2)]
    first_of = [(tmp_path / "out" / "pictures" / f"run-{run}-shape-00-cloud.png").read_bytes() for run in range(2)]
    assert first_of[0] == first_of[1]


@pytest.mark.parametrize("renormalise", [True, False])
def test_shapes_of_the_cache_are_encoded_as_the_run_saw_them(
    nasty: tuple[teacher_cache.Cache, Path], tmp_path: Path, renormalise: bool
) -> None:
    cache, _ = nasty
    points = cache.schema.points - 32
    train(cache, tmp_path / "run", epochs=1, points=points, renormalise=renormalise)
    shown = open_run(tmp_path / "run", "run")
    cache_for(shown, cache)
    embed(shown, torch.device("cpu"), None)
    assert shown.embedding is not None
    clouds = cache.read(list(range(len(cache)))).points[:, :points].astype(np.float64)
    if renormalise:
        clouds -= clouds.mean(1, keepdims=True)
        clouds /= np.linalg.norm(clouds, axis=2).max(1)[:, None, None]
    expected = encode(model_encoder(shown.model, torch.device("cpu")), clouds.astype(np.float32), batch_size=5)
    np.testing.assert_allclose(shown.embedding.features, expected, atol=1e-5)


def test_what_is_not_at_hand_is_said(
    nasty: tuple[teacher_cache.Cache, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache, run_dir = nasty
    other = training_cache(tmp_path / "other", 9, features="int8")
    page = checked(report_runs([run_dir], tmp_path / "wrong", caches=[other], shapes=1))
    assert f"has the recipe {other.recipe.hash[:12]}" in page.text
    assert f"the run was trained on {cache.recipe.hash[:12]}" in page.text
    assert "not at hand" in page.text
    assert not list((tmp_path / "wrong" / "pictures").glob("*-shape-*"))
    page = checked(report_runs([run_dir], tmp_path / "none", shapes=1))  # a run without config.toml
    assert "its cache cannot be opened" in page.text
    outcome = run(capsys, "report", tmp_path)
    assert outcome.code == 1
    assert "neither a checkpoint" in outcome.err
    assert run(capsys, "report", run_dir, run_dir).code == 2


def test_features_that_an_older_run_did_not_keep_are_computed_again(
    nasty: tuple[teacher_cache.Cache, Path], nasty_page: Path, tmp_path: Path
) -> None:
    cache, run_dir = nasty
    pages = []
    for name in ("removed", "damaged"):
        copy = tmp_path / name / "run"
        shutil.copytree(run_dir, copy)
        if name == "removed":
            (copy / EMBEDDING).unlink()
        else:
            (copy / EMBEDDING).write_bytes(b"PK\x03\x04 cut short")
        out = report_runs([copy], tmp_path / name / "out", caches=[cache], shapes=1)
        pages.append({one.name: one.read_bytes() for one in (out.parent / "pictures").iterdir()})
    assert pages[0] == pages[1]
    for name in ("run-0-map.png", "run-0-confusion.png"):
        assert pages[0][name] == (nasty_page.parent / "pictures" / name).read_bytes()


def test_a_failing_report_is_loud_and_changes_neither_run_nor_exit_code(
    smoke: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [word for word in smoke.arguments if word != "--no-report"]
    kept = [path for path in smoke.run_dir.rglob("*") if path.suffix in (".safetensors", ".json", ".toml", ".npz")]
    before = [path.read_bytes() for path in kept]
    for fault, code in ((RuntimeError("no ink"), 0), (MemoryError(), 0), (KeyboardInterrupt(), 130)):
        with monkeypatch.context() as patch:
            patch.setattr("cli.actions.report.report_runs", _raise(fault))
            outcome = run(capsys, *arguments)
        assert outcome.code == code
        assert ("NO REPORT was written" in outcome.err) == (code == 0)
        assert ("trained encoder" in outcome.out) == (code == 0)
        assert [path.read_bytes() for path in kept] == before


def _raise(fault: BaseException) -> Any:
    def fail(*arguments: Any, **named: Any) -> None:
        raise fault

    return fail


@pytest.fixture(scope="module")
def page(smoke: Any) -> Path:
    """The page that pretraining leaves."""
    from tests.support.commands import call

    assert call([word for word in smoke.arguments if word != "--no-report"]) == 0
    return Path(smoke.run_dir / "report" / "index.html")


def test_pretraining_leaves_a_report(page: Path, smoke: Any, capsys: pytest.CaptureFixture[str]) -> None:
    found = checked(page)
    assert len([one for one in (page.parent / "pictures").iterdir() if one.stem.endswith("-cloud")]) == 12
    assert page.stat().st_size < 10e6
    assert "depth, view 2" in found.text
    written = page.stat().st_mtime_ns
    outcome = run(capsys, *(word for word in smoke.arguments if word != "--no-report"))
    assert f"report      {page}" in outcome.out
    assert page.stat().st_mtime_ns == written  # a finished run is only reported
    assert f"open {page} in a browser" in outcome.out


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize(("width", "dark"), [(1200, False), (390, True)])
def test_a_browser_shows_it(page: Path, tmp_path: Path, width: int, dark: bool) -> None:
    view = visit(page, tmp_path / "browser", width=width, dark=dark)
    if folder := os.environ.get("I2P_SCREENSHOTS"):
        (Path(folder) / f"report-{width}-{'dark' if dark else 'light'}.png").write_bytes(view.png)
    assert view.errors == []
    assert view.requests == []
    found = view.found
    assert found["pictures"] > 100
    assert found["broken"] == found["blank"] == 0
    assert found["canvases"] == found["turnable"] > 50
    assert view.turned
    assert found["needed"] <= found["width"] == width
    ground, ink = (sum(map(int, re.findall(r"\d+", found[name])[:3])) for name in ("ground", "ink"))
    assert (ground < 150 < ink) if dark else (ink < 150 < ground)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_a_browser_runs_no_name(nasty_page: Path, tmp_path: Path) -> None:
    view = visit(nasty_page, tmp_path / "browser", width=800, dark=False)
    assert view.errors == view.requests == []
    assert view.found["scripts"] == 2
    assert view.found["title"] == "i2p: <b>run"


def test_charts_take_odd_content() -> None:
    assert run_curves([("a", []), ("b", [])]) == []
    events = [{"event": "epoch", "epoch": 1, "loss_odd": 2.0}, {"event": "epoch", "epoch": 2, "loss_odd": "inf"}]
    assert [key for key, _, _ in run_curves([("a", events)])] == ["curve-0"]
    assert map_chart(np.zeros((1, 2), np.float32), np.array([-1]), ())
    assert confusion_chart(np.array([[0, 0, 0], [0, 0, 2], [0, 0, 0]]), ("a", "b", "c"))
