"""The plain family agrees with its recordings, at their sizes and at others; what a departure changes shows."""

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from benchmarks.parity.command import NAME, parity
from benchmarks.parity.compare import OK, PAST, UNCOMPARED
from benchmarks.parity.plain_models import plain_settings
from benchmarks.parity.recorded import Recorded
from benchmarks.parity.runner import PLAIN_SECTIONS, SECTIONS, run_section, sections_for
from tests.support.commands import call
from tests.support.plain_recording import RECORDED, SIZES, record_plain
from tests.support.reference import shared_dir

ROWS = {
    "pointmae-pretrain": 39,
    "pointmae-finetune": 15,
    "pointmae-partseg": 12,
    "pointbert": 24,
    "act": 21,
    "recon": 23,
    "pcp": 25,
    "femae": 26,
    "metrics": 17,
    "params": 94,
}
"""Comparisons in each section of the recorded folder: none is lost unnoticed."""
PCP = 5  # arrays of PCP-MAE's own pre-training, which is not here


@pytest.fixture(scope="module")
def result_of():
    recorded, settings = Recorded(shared_dir("reference_plain")), plain_settings()
    return cache(lambda name: run_section(name, recorded, settings))


@pytest.mark.parametrize("name", [name for name in PLAIN_SECTIONS if name != "fullsize"])
def test_section(result_of, name):
    result = result_of(name)
    other = [row for row in result.rows if row.verdict != OK]
    assert [row for row in other if row.verdict != UNCOMPARED] == []
    assert len(other) == (PCP if name == "pcp" else 0)
    assert len(result.rows) == ROWS[name]


def test_full_size_models():
    """The student and one classifier: `make parity` runs all fifteen."""
    section = PLAIN_SECTIONS["fullsize"](Recorded(shared_dir("reference_plain")), plain_settings(), torch.device("cpu"))
    parts = section.parts()
    assert len(parts) == 14
    rows = [*parts["student"](), *parts["classifier pointmae, mn"]()]
    assert [row.verdict for row in rows] == [OK] * 6


def test_a_folder_is_recognised_by_its_files(tmp_path):
    assert sections_for(Recorded(shared_dir("reference")))[0] == "hierarchical"
    assert sections_for(Recorded(shared_dir("reference_plain"))) == ("plain", PLAIN_SECTIONS)
    (tmp_path / "params.json").write_text("{}")  # both have one
    assert sections_for(Recorded(tmp_path))[1] is SECTIONS
    (tmp_path / "pointbert.npz").touch()
    assert sections_for(Recorded(tmp_path))[0] == "plain"


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("model.distance=root", "cdl2, running statistics"),
        ("trainer.weight_decay=0.5", "parameter norms after an AdamW step, gradient above 0.001"),
        ("trainer.no_decay=vectors", ""),
        ("masking.ratio=0.5", ""),
    ],
)
def test_a_departure_from_the_preset_shows_where_it_matters(override, part):
    result = run_section("pointmae-pretrain", Recorded(shared_dir("reference_plain")), plain_settings((override,)))
    past = [row.what for row in result.rows if row.verdict == PAST]
    assert (part in past) if part else past == []  # sizes are the folder's; here both rules spare the same weights


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain") / "reference"
    record_plain(folder, plain_settings())
    return folder


@pytest.mark.parametrize("name", RECORDED)
def test_a_folder_of_other_sizes(other, name):
    result = run_section(name, Recorded(other), plain_settings())
    wrong = [row for row in result.rows if row.verdict != OK and not (name == "pcp" and row.verdict == UNCOMPARED)]
    assert wrong == []
    assert len(result.rows) == ROWS[name]


def test_that_folder_with_another_size_or_value_is_told(other, tmp_path):
    for path in other.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "config.json").unlink()
    config = json.loads((other / "config.json").read_text())
    config["config"]["recon"]["num_group"] = SIZES["recon"]["num_group"] - 1
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert not run_section("recon", Recorded(tmp_path), plain_settings()).passed
    with np.load(other / "act.npz") as held:
        arrays = dict(held)
    arrays["pre_evalbn__enc"] = arrays["pre_evalbn__enc"] + np.float32(1e-4)
    (tmp_path / "act.npz").unlink()
    np.savez(tmp_path / "act.npz", **arrays)
    rows = run_section("act", Recorded(tmp_path), plain_settings()).rows
    assert [row.what for row in rows if row.verdict == PAST] == ["encoder output"]


def test_the_command_takes_the_folder(other, capsys):
    def main(arguments):
        parity.main(arguments, prog_name=NAME)

    assert call([str(other), "--section", "recon", "--quiet"], main) == 0
    assert "ReCon: encoder, reconstruction and classifier" in capsys.readouterr().out
    assert call([str(other), "--section", "projection"], main) == 2
    assert "projection is not one; sections: pointmae-pretrain" in capsys.readouterr().err


def test_settings_of_another_student_are_no_plain_ones():
    with pytest.raises(ValueError, match="the recorded models are plain"):
        plain_settings(("model.architecture=hierarchical",))
    assert replace(plain_settings().model, drop_path=0.1).drop_path == 0.1
