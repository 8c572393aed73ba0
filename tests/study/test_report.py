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


def test_gains_are_over_the_baseline_of_a_study_on_the_same_corpus():
    shares = [
        result(arm, "embedded", seed, accuracy) | {"corpus": corpus}
        for corpus, more in (("a", 0.0), ("b", 0.2))
        for seed, few, all_of_it in ((0, 0.5, 0.6 + more), (1, 0.4, 0.7 + more))
        for arm, accuracy in (("share-0.1", few), ("share-1.0", all_of_it))
    ] + [result("untrained", "none", 0, 0.3)]
    rows = {(row["arm"], row["corpus"]): row["sets"]["toys"] for row in summarise(shares, "share-0.1")["rows"][::-1]}
    assert rows["share-1.0", "a"]["gain"] == pytest.approx(np.mean([0.6 - 0.5, 0.7 - 0.4]))
    assert rows["share-1.0", "b"]["gain"] == pytest.approx(np.mean([0.8 - 0.5, 0.9 - 0.4]))
    assert rows["share-0.1", "a"]["gain"] is None
    assert rows["untrained", ""]["gain"] == pytest.approx(0.3 - 0.5)
    lines = markdown(summarise(shares, "share-0.1")).splitlines()
    assert lines[0].startswith("| arm | teacher | trained on | seeds | feature | numbers | toys | gain |")
    assert len({line.count("|") for line in lines}) == 1
    assert "gain" not in markdown(summarise(shares))  # without the arm that gains are over, there are none


def test_the_table_and_the_picture(tmp_path):
    summary = summarise(RESULTS)
    lines = markdown(summary).splitlines()
    assert lines[0].startswith("| arm | teacher | seeds | feature | numbers | toys | gain |")
    assert len({line.count("|") for line in lines}) == 1
    assert "| full | embedded | 3 | levels | 57 | 75.0 ± 5.0 | +12.5 ± 7.5 |" in lines[-4]
    assert "| full | embedded | 3 | top | 7 | 15.0 ± 1.0 | +2.5 ± 1.5 |" in lines[-1]
    picture(summary, tmp_path / "study.png")
    assert (tmp_path / "study.png").read_bytes().startswith(b"\x89PNG")
