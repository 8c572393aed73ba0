"""`i2p downstream`: every cell of its table is kept, a killed suite goes on, and the table is of what cells hold."""

import json

import numpy as np
import pytest

from cli.suite.plan import TWIN, known_cell, plan_cells, synthetic_set
from cli.suite.report import markdown, summarise
from cli.suite.work import do
from tests.support.commands import call, run
from tests.support.in_process import PLACE, do_all_here
from trainer.checkpoints.files import find_checkpoint, read_header

SMALL = ("--seeds", 2, "--epochs", 2, "--points", 96, "--stored-points", 128, "--size", 0.1, "--workers", 1)


def files(folder):
    return {path.name: path.read_bytes() for path in sorted((folder / "cells").glob("*.json"))}


@pytest.fixture(scope="module")
def suite(smoke, tmp_path_factory):
    """A finished suite; its cells were done in this process, which starts none."""
    out = tmp_path_factory.mktemp("suite") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PLACE, do_all_here)
        assert call(("downstream", str(smoke.run_dir), "--out", str(out), *map(str, SMALL))) == 0
    return out


def test_cells_that_are_lost_are_made_again_to_the_byte(suite, smoke, capsys):
    found = files(suite)
    assert len(found) == 1 + 5 + 2 * 3 * 2
    assert not list((suite / "runs").iterdir())
    table = (suite / "downstream.md").read_text()
    for name in ("tune-synthetic-full-1.json", "frozen-synthetic-scratch.json"):
        (suite / "cells" / name).unlink()
    (suite / "cells" / "frozen-synthetic-coordinates.json").write_text(
        '{"settings": {"poi'
    )  # as no killed suite leaves
    outcome = run(capsys, "downstream", smoke.run_dir, "--out", suite, *SMALL)  # in a process of its own
    assert outcome.code == 0, outcome.err
    assert files(suite) == found
    assert "for 3 cells, 1 at a time" in outcome.err
    assert outcome.out == (suite / "downstream.md").read_text() == table
    assert run(capsys, "downstream", smoke.run_dir, "--out", suite, *SMALL).out == table
    refused = run(capsys, "downstream", smoke.run_dir, "--out", suite, *SMALL, "--epochs", 3)
    assert (refused.code, "epochs was 2, is now 3" in refused.err) == (2, True), refused.err
    assert files(suite) == found


def test_the_table_is_of_what_the_cells_hold(suite):
    out = suite
    table = json.loads((out / "downstream.json").read_text())["sets"]["synthetic"]
    titles = [column["title"] for column in table["columns"]]
    assert titles == ["linear SVM, 36 classes", "fine-tuned on 72 shapes", "parts, 24 shapes: instance mIoU"]
    cells = {name.removesuffix(".json"): json.loads(content) for name, content in files(out).items()}
    for arm in ("scratch", "3d-only", "full"):
        scores = [cells[f"tune-synthetic-{arm}-{seed}"]["accuracy"] for seed in range(2)]
        cell = table["rows"][arm][1]
        assert (cell["scores"], cell["mean"]) == (scores, pytest.approx(np.mean(scores)))
        assert cell["spread"] == pytest.approx(np.std(scores, ddof=1))
    assert table["rows"]["coordinates"][1:] == [None, None]
    assert table["rows"]["point-nn"][0]["spread"] is None
    assert table["columns"][0]["step"] == 1 / 72
    # the arms are different encoders
    assert len({tuple(table["rows"][arm][0]["scores"]) for arm in ("scratch", "3d-only", "full")}) == 3
    twin = read_header(find_checkpoint(out / "3d-only")).config
    assert (twin["masking"]["mode"], twin["model"]["targets"], twin["alignment"]["weight"]) == ("random", "3d", 0)


def test_a_frozen_cell_is_what_evaluate_and_fewshot_print(suite, smoke, capsys):
    """The suite's own path to a linear probe, against the command's."""
    out = suite
    uris = dict(zip(("--train", "--test"), synthetic_set(0.1).probe, strict=True))
    options = [part for pair in uris.items() for part in pair]
    outcome = run(capsys, "evaluate", smoke.run_dir, *options, "--points", 96, "--stored-points", 128, "--seeds", 2,
                  "--json")  # fmt: skip
    rows = json.loads(outcome.out)["rows"]
    for arm, name in (("full", "trained"), ("coordinates", "coordinates")):
        assert json.loads(files(out)[f"frozen-synthetic-{arm}.json"])["probe"] == rows[name]["scores"]


def test_few_shot_settings_that_a_set_allows_are_scored(smoke, tmp_path):
    sets = synthetic_set(0.3)  # three of each class
    few = [part.replace("count=108", "count=360").replace("count=72", "count=108") for part in sets.probe]
    (cell,) = (
        cell
        for cell in plan_cells([sets], encoder="x", seeds=1, points=64, stored_points=64, epochs=2, pretrain_passes=1)
        if (cell.what, cell.arm) == ("frozen", "coordinates")
    )
    settings = {**cell.settings, "uris": few, "queries": 3, "folds": 2}
    found, seconds = do(
        type(cell)("frozen", "coordinates", "synthetic", None, settings, 1), smoke.run_dir, tmp_path, None
    )
    assert seconds > 0
    assert {name: len(scores) for name, scores in found["few"].items()} == {"5-way 10-shot": 2, "10-way 10-shot": 2}
    assert found["few_tested"] == {"5-way 10-shot": 15, "10-way 10-shot": 30}
    assert found["shapes"] == 108


def test_class_miou_is_a_column_where_it_says_something_else():
    cells = plan_cells(
        [synthetic_set(0.1)], encoder="x", seeds=1, points=64, stored_points=64, epochs=2, pretrain_passes=1
    )
    results = {
        cell.name: {"instance": 0.5, "classes": 0.25 if cell.arm == "full" else 0.5, "categories": {"a": 0, "b": 0},
                    "shapes": 10, "trained_on": 7}
        for cell in cells if cell.what == "parts"
    }  # fmt: skip
    summary = summarise(cells, results)
    assert [column["title"] for column in summary["synthetic"]["columns"]] == [
        "parts, 7 shapes: instance mIoU", "parts, 7 shapes: class mIoU"
    ]  # fmt: skip
    text = markdown(summary, ["a note"])
    assert "| full | 50.0 | 25.0 |" in text
    assert "- a note" in text
    for result in results.values():
        result["classes"] = result["instance"]
    assert len(summarise(cells, results)["synthetic"]["columns"]) == 1


def test_what_cannot_be_taken_is_refused(smoke, capsys, tmp_path):
    for arguments, code, said in (
        ((tmp_path / "nothing",), 2, "has no config.toml; name the directory of a run of i2p pretrain"),
        ((smoke.run_dir, "--points", 40), 2, "--points 40 is less than the 64 that the encoder needs"),
        ((smoke.run_dir, "--points", 96, "--stored-points", 64), 2, "--stored-points 64 is less than --points 96"),
        ((smoke.run_dir, "--real", "mine"), 2, "expected NAME=TRAIN,TEST"),
        ((smoke.run_dir, "--report"), 1, "no cell of this suite has ended"),
    ):
        refused = run(capsys, "downstream", *arguments, "--out", tmp_path / "out")
        assert (refused.code, said in refused.err) == (code, True), refused.err
    assert len(TWIN) == 7
    assert known_cell(tmp_path, plan_cells([], encoder="x", seeds=1, points=64, stored_points=64, epochs=2,
                                           pretrain_passes=1)[0]) is None  # fmt: skip
