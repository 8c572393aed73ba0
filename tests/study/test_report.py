"""A study's table against the plain arithmetic."""

import numpy as np
import pytest

from cli.study.report import markdown, picture, summarise


def result(arm, teacher, seed, accuracy, **more):
    return {"arm": arm, "teacher": teacher, "seed": seed, "settings": "x", "seconds": 2.0 + seed,
            "sets": {"toys": {"accuracy": accuracy, "features": {
                "levels": {"accuracy": accuracy, "numbers": 57}, "top": {"accuracy": accuracy / 5, "numbers": 7}},
                **more}}}  # fmt: skip


RESULTS = [
    result("full", "embedded", 1, 0.8),
    result("full", "embedded", 0, 0.75),
    result("full", "embedded", 2, 0.7),
    result("3d-random", "none", 0, 0.7),
    result("3d-random", "none", 1, 0.6),
    result("untrained", "none", 0, 0.5, **{"largest class": 0.1, "coordinates": 0.65}),
]


def test_means_spreads_and_paired_gains():
    summary = summarise(RESULTS)
    rows = {(row["arm"], row["teacher"]): row for row in summary["rows"] if row["feature"] == "levels"}
    full = rows["full", "embedded"]["sets"]["toys"]
    assert full["mean"] == pytest.approx(0.75)
    assert full["spread"] == pytest.approx(np.std([0.75, 0.8, 0.7], ddof=1))
    assert full["scores"] == [0.75, 0.8, 0.7]
    pairs = [0.75 - 0.7, 0.8 - 0.6]  # seed 2 has no partner
    assert full["gain"] == pytest.approx(np.mean(pairs))
    assert full["gain_error"] == pytest.approx(np.std(pairs, ddof=1) / np.sqrt(2))
    assert rows["untrained", "none"]["sets"]["toys"]["spread"] is None
    assert summary["references"] == {"toys": {"largest class": 0.1, "coordinates": 0.65}}
    assert [row["arm"] for row in summary["rows"]] == ["untrained", "3d-random", "full"] * 2
    assert [row["feature"] for row in summary["rows"]] == ["levels"] * 3 + ["top"] * 3
    top = summary["rows"][-1]
    assert (top["arm"], top["numbers"], rows["full", "embedded"]["numbers"]) == ("full", 7, 57)
    assert top["sets"]["toys"]["gain"] == pytest.approx(np.mean(pairs) / 5)


def test_the_table_and_the_picture(tmp_path):
    summary = summarise(RESULTS)
    lines = markdown(summary).splitlines()
    assert lines[0].startswith("| arm | teacher | seeds | feature | numbers | toys | gain |")
    assert len({line.count("|") for line in lines}) == 1
    assert "| full | embedded | 3 | levels | 57 | 75.0 ± 5.0 | +12.5 ± 7.5 |" in lines[-4]
    assert "| full | embedded | 3 | top | 7 | 15.0 ± 1.0 | +2.5 ± 1.5 |" in lines[-1]
    picture(summary, tmp_path / "study.png")
    assert (tmp_path / "study.png").read_bytes().startswith(b"\x89PNG")
