"""No size, name or seed of the recorded folder is assumed: another folder, with other ones, is compared throughout."""

import json

import pytest

from benchmarks.parity.compare import OK, PAST
from benchmarks.parity.recorded import Recorded
from benchmarks.parity.runner import run_section
from tests.support.recording import APART, NEAR, RECORDED, record

# What config.json notes about the reference's behaviour, which our own arrays cannot know.
NOTES = {
    "projection": {"config.json: projection_far_edge_indices"},
    "pretrain": {"config.json: pretrain_extra_visible_l0"},
    "finetune": {
        f"config.json: finetune_{name}_reference_loader_on_module_prefix" for name in ("modelnet40", "scanobjectnn")
    },
    "partseg": {"partseg.npz: full_pts"},
}


@pytest.fixture(scope="module", params=[NEAR, APART], ids=["near", "apart"])
def folder(request, tmp_path_factory, settings):
    folder = tmp_path_factory.mktemp("other") / "reference"
    record(folder, settings, request.param)
    return folder


@pytest.mark.parametrize("name", RECORDED)
def test_a_folder_of_other_sizes(folder, settings, name):
    result = run_section(name, Recorded(folder), settings)
    wrong = {row.what: row.note for row in result.rows if row.verdict != OK}
    assert wrong == dict.fromkeys(NOTES.get(name, ()), "not in the folder")
    assert len(result.rows) > len(wrong)


def test_that_folder_with_another_size_in_its_config_is_refused(folder, tmp_path, settings):
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "config.json").unlink()
    config = json.loads((folder / "config.json").read_text())["config"]
    config["pre"]["mask_ratio"] = 0.5
    (tmp_path / "config.json").write_text(json.dumps({"config": config}))
    result = run_section("pretrain", Recorded(tmp_path), settings)
    assert "mask of level 2" in [row.what for row in result.rows if row.verdict == PAST]
