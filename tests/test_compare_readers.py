"""The trial of readers: a verdict says what it means, and a folder is compared as its expected.json has it."""

import json

import pytest

from benchmarks.compare_readers import main, verdict
from tests.support.corpora import cube_text

BOX = {"area": 22.0, "bbox_min": [0, 0, 0], "bbox_max": [1, 2, 3]}


def said(area=22.0, points=8, low=(0, 0, 0), high=(1, 2, 3)):
    return {"area": area, "points": points, "box": [list(low), list(high)]}


@pytest.mark.parametrize(
    ("answer", "wanted", "word"),
    [
        (said(), BOX, "right"),
        (said(22.03), BOX, "wrong"),
        (said(22.03), {**BOX, "tolerance": 0.01}, "right"),
        (said(22.4), {**BOX, "area_earclip": 23.0}, "right"),
        (said(high=(1, 2, 3.1)), BOX, "wrong"),
        (said(low=(0.1, 0, 0)), BOX, "wrong"),
        (said(high=(1, float("nan"), 3)), BOX, "wrong"),
        (said(None), BOX, "wrong"),  # points instead of a surface
        (said(0.0), BOX, "empty"),
        ({"area": None, "points": 0, "box": None}, BOX, "empty"),
        (said(None, 70), {"points": 70, "bbox_max": [1, 2, 3]}, "right"),
        (said(None, 69), {"points": 70, "bbox_max": [1, 2, 3]}, "wrong"),
        (said(22.0, 70), {"points": 70, "bbox_max": [1, 2, 3]}, "wrong"),  # a surface instead of points
        (said(), {"area": 22.0}, "right"),  # no box is known
        (said(21.0), {"area": 22.0}, "wrong"),
        (said(None), {"area": 22.0}, "wrong"),
        (said(None, 70, high=(9, 9, 9)), {"points": 70}, "right"),
        (said(None, 69), {"points": 70}, "wrong"),
        (said(None, 70), {"points": 70, "bbox_min": [0, 0, 1]}, "wrong"),
        ({"area": None, "points": 0, "box": None}, {"area": 22.0}, "empty"),
        ({"refused": "ValueError"}, BOX, "refused"),
        ({"refused": "ValueError"}, {"expected": "refused"}, "right"),
        (said(), {"expected": "refused"}, "wrong"),
        ({"impossible": "a face of vertex 9, of 8"}, BOX, "wrong"),
        ({"crashed": "signal 11"}, BOX, "crashed"),
    ],
)
def test_verdicts(answer, wanted, word):
    assert verdict(answer, wanted)[0] == word


def test_a_folder_is_compared(tmp_path, capsys):
    (tmp_path / "a.off").write_bytes(cube_text("off"))
    (tmp_path / "b.off").write_bytes(cube_text("off"))
    (tmp_path / "c.off").write_bytes(b"no mesh")
    cube = {"area": 6.0, "bbox_min": [0, 0, 0], "bbox_max": [1, 1, 1]}
    wanted = {"a.off": cube, "b.off": {**cube, "area": 7.0}, "c.off": {"expected": "refused"}}
    (tmp_path / "expected.json").write_text(json.dumps(wanted))
    assert main([str(tmp_path), "--json", str(tmp_path / "out.json")]) == 0
    found = json.loads((tmp_path / "out.json").read_text())["this project"]
    assert {path: word for path, (word, _, _) in found.items()} == {
        "a.off": "right",
        "b.off": "wrong",
        "c.off": "right",
    }
    out = capsys.readouterr().out
    assert "| this project | 2 | 1 | 0 | 0 | 0 | 0 |" in out
    assert "this project, wrong:\n- b.off: area 6, right 7" in out
