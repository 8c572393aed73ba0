"""The comparison can fail: a changed number, a changed setting, a missing or damaged file, each is said."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.parity.command import main
from benchmarks.parity.compare import FAILED, MISSING, OK, PAST, UNCOMPARED, Row, compare, merged, same
from benchmarks.parity.models import reference_settings
from benchmarks.parity.quantities import doubled, settled
from benchmarks.parity.recorded import Recorded
from benchmarks.parity.runner import run_section
from tests.support.commands import run
from tests.support.parity import changed_folder
from tests.support.reference import shared_dir


def past(result) -> list[str]:
    return [row.what for row in result.rows if row.verdict == PAST]


# -- one pair of arrays ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "recorded", "tolerance", "verdict"),
    [
        ([1.0, 2.0], [1.0, 2.0], "exact", OK),
        ([1.0, 2.0], [1.0, 2.000001], "exact", PAST),
        ([1.0, 2.0], [1.0, 2.000009], "projection.img", OK),
        ([1.0, 2.0], [1.0, 2.000011], "projection.img", PAST),
        ([1e6], [1e6 + 9], "loss", OK),
        ([1e6], [1e6 + 11], "loss", PAST),
        ([0.0], [0.0], "loss", OK),
        ([1e-30], [0.0], "loss", PAST),
        ([[1.0]], [1.0], "projection.img", PAST),
        ([np.nan], [1.0], "projection.img", PAST),
        ([np.nan], [np.nan], "projection.img", PAST),
        ([1.0], [np.inf], "projection.img", PAST),
        ([np.inf], [np.inf], "exact", PAST),
        ([], [], "exact", FAILED),
        ([True, False], [True, True], "exact", PAST),
        ([2**53], [2**53 - 1], "exact", PAST),
    ],
)
def test_verdicts(ours, recorded, tolerance, verdict):
    assert compare("x", np.array(ours), np.array(recorded), tolerance).verdict == verdict


def test_figures():
    row = compare("x", torch.tensor([1.0, 200.0, 0.0]), np.array([1.5, 100.0, 0.001]), "logits")
    assert row.absolute == 100.0
    assert row.relative == 1.0  # 0.001 / 0.1, the thousandth of the largest, is less
    assert row.note == "3 of 3 values"
    assert compare("x", np.array([1.1]), np.array([1.0]), "loss").relative == pytest.approx(0.1)
    assert compare("x", np.ones((2, 3)), np.ones(6), "loss").note == "shape [2, 3], recorded [6]"
    assert compare("x", np.array([np.nan, 1]), np.ones(2), "loss").note == "1 of 2 our values are not finite"


def test_names():
    assert same("x", ["a", "b"], ["a", "b"]).verdict == OK
    assert same("x", ["a", "c"], ["a", "b"]).note == "1 extra: c; 1 absent: b"
    assert same("x", ["b", "a"], ["a", "b"]).note == "the same entries in another order or number"


def test_one_bad_cloud_spoils_the_merged_row():
    good, bad = (compare("x", np.ones(1), np.full(1, value), "exact") for value in (1, 3))
    row = merged("all", [("ball", good), ("rod", bad), ("far", good)])
    assert (row.verdict, row.values, row.absolute) == (PAST, 3, 2.0)
    assert row.note == "rod: 1 of 1 values"
    assert merged("none", []).verdict == MISSING


def test_gradients_that_float32_sends_elsewhere_need_float64_to_agree():
    ok, off = Row(what="g"), Row(what="g", verdict=PAST, note="1 of 9 values", relative=0.01)
    assert list(settled([ok], lambda: pytest.fail("not needed"))) == [ok]
    assert list(settled([ok, off], lambda: [off, off])) == [ok, off]
    accepted = list(settled([ok, off], lambda: [off, ok]))
    assert accepted[0] == ok
    assert accepted[1].verdict == OK
    assert "in float64; in float32 1 of 9 values, by up to 1.0e-02" in accepted[1].note
    assert doubled([torch.ones(1), None, torch.ones(1, dtype=torch.int64)])[0].dtype == torch.float64


# -- a changed setting, a changed number -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "section", "shows"),
    [
        ("projection.reduction=mean", "projection", "img, 6 clouds"),
        ("projection.splat=3", "projection", "sum, 1 cloud"),
        ("projection.normalisation=clip", "projection", "img, 6 clouds"),
        ("model.fps_skip_near_origin=false", "grouping", "skip: level 0, sampled indices"),
        ("model.token0_leak=false", "pretrain", "mask of level 1"),
        ("model.batch_norm_groups=visible", "pretrain", "3D loss, batch statistics"),
        ("model.merge_input=normed", "pretrain", "encoder, level 1"),
        ("model.eval_hide_unused=false", "pretrain", "evaluation: mask of level 0"),
        ("masking.saliency=standardised", "pretrain", "drawing probabilities"),
        ("trainer.weight_decay=0.9", "pretrain", "parameter norms after an AdamW step, gradient above 0.001"),
        ("trainer.no_decay=vectors", "params", "pretrain: names without weight decay"),
        ("trainer.schedule=per-step", "params", "pretrain: learning rate in every epoch"),
        ("model.mlp_ratio=3", "params", "pretrain: shapes and types"),
    ],
)
def test_a_wrong_setting_is_past_tolerance(setting, section, shows):
    result = run_section(section, Recorded(shared_dir("reference")), reference_settings((setting,)))
    assert shows in past(result)
    assert not result.passed


@pytest.mark.parametrize(
    ("section", "file", "array", "by", "shows"),
    [
        ("projection", "projection.npz", "plate__img", 2e-5, "img, 6 clouds"),
        ("projection", "projection.npz", "rod__idx", 1, "idx, 6 clouds"),
        ("projection", "projection.npz", "pair__img0", 2e-5, "img0, view 0 of clouds projected together"),
        ("backprojection", "backprojection.npz", "out_sal", 2e-7, "saliency at the queries"),
        ("teacher", "teacher.npz", "attn_cls", 4e-6, "all that the class token attends to, itself included"),
        ("grouping", "grouping.npz", "plain__knn_l2", 1, "plain: level 2, neighbours"),
        ("pretrain", "model_pretrain.npz", "evalbn__dec", 2e-4, "decoder output"),
        ("pretrain", "model_pretrain.npz", "train__loss_2d", 1e-4, "2D loss, batch statistics"),
        ("pretrain", "model_pretrain.npz", "train__grad_norms", 1.0, "gradient norms, gradient above 0.001"),
        ("pretrain", "model_pretrain.npz", "train__grad_mask_token", 2e-3, "gradient of mask_token"),
        ("finetune", "finetune.npz", "scanobjectnn__eval_logits", 4e-5, "scanobjectnn: logits"),
        ("finetune", "finetune.npz", "modelnet40__train_grad_norms", 2.0, "modelnet40: gradient norms, gradient above"),
        ("partseg", "partseg.npz", "eval_log_probs", 4e-5, "log-probabilities"),
        ("partseg", "partseg.npz", "train_grad_norms", 1.0, "gradient norms, gradient above 0.001"),
    ],
)
def test_one_changed_number_is_past_tolerance(tmp_path, settings, section, file, array, by, shows):
    def change(arrays):
        arrays[array] = arrays[array].copy()
        flat = arrays[array].reshape(-1)
        flat[np.flatnonzero(np.isfinite(flat.astype(float)))[-1]] += np.asarray(by, flat.dtype)

    result = run_section(section, Recorded(changed_folder(tmp_path, {file: change})), settings)
    assert any(what.startswith(shows) for what in past(result)), past(result)


def test_another_salt_gives_another_checksum(tmp_path, settings):
    def change(config):
        config["config"]["salt"] += "x"

    result = run_section("partseg", Recorded(changed_folder(tmp_path, {"config.json": change})), settings)
    assert past(result) == [
        "full size: checksum of the weights",
        "full size: log-probabilities of every n-th point",
    ]


def test_nan_in_a_recorded_array_is_refused(tmp_path, settings):
    def change(arrays):
        arrays["out_feats"][0, 0, 0, 0] = np.nan

    result = run_section("backprojection", Recorded(changed_folder(tmp_path, {"backprojection.npz": change})), settings)
    [row] = [row for row in result.rows if not row.passed]
    assert (row.verdict, row.note) == (PAST, "1 of 6144 recorded values are not finite")


# -- what is not there -------------------------------------------------------------------------------------------------


def test_an_absent_array_is_named_and_the_others_are_compared(tmp_path, settings):
    def change(arrays):
        del arrays["evalbn__dec"], arrays["mask_ids"]

    result = run_section("pretrain", Recorded(changed_folder(tmp_path, {"model_pretrain.npz": change})), settings)
    absent = [row.what for row in result.rows if row.verdict == MISSING]
    assert absent == ["model_pretrain.npz: mask_ids"]  # once, though three parts need it
    assert "evaluation feature" in [row.what for row in result.rows if row.verdict == OK]


def test_an_absent_result_is_named(tmp_path, settings):
    def change(arrays):
        del arrays["rod__img"], arrays["out_feats"]

    changes = {"projection.npz": lambda arrays: arrays.pop("rod__img"), "backprojection.npz": _drop("out_feats")}
    recorded = Recorded(changed_folder(tmp_path, changes))
    [row] = [row for row in run_section("projection", recorded, settings).rows if not row.passed]
    assert (row.what, row.verdict, row.note) == ("img, 6 clouds", MISSING, "rod: not in the folder")
    [row] = [row for row in run_section("backprojection", recorded, settings).rows if not row.passed]
    assert (row.what, row.verdict) == ("backprojection.npz: out_feats", MISSING)


def _drop(name):
    return lambda arrays: arrays.pop(name)


def test_an_array_of_an_unknown_name_is_shown(tmp_path, settings):
    def change(arrays):
        arrays["attn_all"] = np.zeros(3)

    result = run_section("teacher", Recorded(changed_folder(tmp_path, {"teacher.npz": change})), settings)
    [row] = [row for row in result.rows if row.verdict != OK]
    assert (row.what, row.verdict) == ("teacher.npz: attn_all", UNCOMPARED)
    assert result.passed


@pytest.mark.parametrize(
    ("file", "section", "whole"),
    [
        ("teacher.npz", "teacher", "not a whole .npz file"),
        ("pretrain_ckpt.pth", "pretrain", "Download it again"),
        ("config.json", "pretrain", "not JSON"),
        ("teacher_openai.pt", "teacher", "teacher_openai.pt is "),
    ],
)
@pytest.mark.parametrize("share", [None, 0.0, 0.6])
def test_an_absent_or_truncated_file_is_named(tmp_path, settings, file, section, whole, share):
    data = (shared_dir("reference") / file).read_bytes()
    cut = None if share is None else data[: int(len(data) * share)]
    result = run_section(section, Recorded(changed_folder(tmp_path, {file: cut})), settings)
    wrong = [row for row in result.rows if not row.passed]
    assert wrong
    assert all(row.verdict in (MISSING, FAILED) for row in wrong)
    said = " ".join(f"{row.what} {row.note}" for row in wrong)
    assert file in said
    assert str(tmp_path) not in said
    assert ("not in the folder" if share is None else whole.lower()) in said.lower()


def test_a_damaged_array_is_named(tmp_path, settings):
    data = bytearray((shared_dir("reference") / "teacher.npz").read_bytes())
    data[2000] ^= 1  # inside the first array's data
    result = run_section("teacher", Recorded(changed_folder(tmp_path, {"teacher.npz": bytes(data)})), settings)
    [row] = [row for row in result.rows if row.verdict == MISSING]
    assert row.what == "teacher.npz: imgs"
    assert "damaged" in row.note


def test_pickled_arrays_are_not_opened(tmp_path, settings):
    folder = changed_folder(tmp_path, {"teacher.npz": None})
    np.savez(folder / "teacher.npz", imgs=np.array([{"a": 1}], dtype=object))
    [row, *_] = run_section("teacher", Recorded(folder), settings).rows
    assert row.what == "teacher.npz: imgs"
    assert "allow_pickle=False" in row.note


def test_a_checkpoint_of_other_sizes_is_said_to_be_one(tmp_path, settings):
    def change(config):
        config["config"]["fine"]["encoder_depths"] = [2, 2, 1]

    result = run_section("finetune", Recorded(changed_folder(tmp_path, {"config.json": change})), settings)
    notes = [row.note for row in result.rows if row.verdict == FAILED]
    assert notes
    assert all(
        "finetune_ckpt_" in note and "does not fit a model of the sizes in config.json" in note for note in notes
    )


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_prints_the_table_writes_the_page_and_answers_0(tmp_path, capsys):
    page = tmp_path / "docs" / "parity.md"
    arguments = ("--section", "grouping", "--section", "projection", "--markdown", page)
    outcome = run(capsys, shared_dir("reference"), *arguments, program=main)
    assert outcome.code == 0
    assert "Projection: images and pixel grids  [projection.npz]\n" in outcome.out
    assert "40 comparisons of 3,222,953 values in 2 sections" in outcome.out
    assert "in 2 sections: 40 ok; " in outcome.out
    assert "projection      14 ok" in outcome.err
    assert "grouping        26 ok" in outcome.err
    text = page.read_text()
    command = "python -m benchmarks.parity DIR --markdown --section grouping --section projection"
    assert f"Generated by `{command}`; do not edit. torch" in text
    assert str(shared_dir("reference")) not in text
    assert "| idx, 6 clouds | 30720 | 0 | 0 | exact | ok |" in text


def test_the_command_answers_1_past_tolerance(capsys):
    arguments = ("--section", "grouping", "--set", "model.fps_skip_near_origin=false")
    outcome = run(capsys, shared_dir("reference"), *arguments, program=main)
    assert outcome.code == 1
    assert "PAST TOLERANCE: " in outcome.out
    assert "NOT within tolerance" in outcome.err


def test_an_empty_folder_is_told_file_by_file(tmp_path, capsys):
    outcome = run(capsys, tmp_path, program=main)
    assert outcome.code == 1
    assert "Traceback" not in outcome.err
    for name in ("projection", "backprojection", "teacher", "grouping", "model_pretrain", "finetune", "partseg"):
        assert f"{name}.npz" in outcome.out
    assert "missing: not in the folder" in outcome.out
    assert " ok" not in outcome.out


def test_an_unknown_section_or_setting_is_wrong_usage(tmp_path, capsys):
    outcome = run(capsys, tmp_path, "--section", "grouping", "--section", "tokens", program=main)
    assert outcome.code == 2
    assert "tokens is not one; sections: projection, backprojection, teacher, grouping" in outcome.err
    outcome = run(capsys, tmp_path, "--set", "model.token_leak=false", program=main)
    assert outcome.code == 2
    assert "did you mean model.token0_leak?" in outcome.err


def test_help_names_the_exit_code(capsys):
    outcome = run(capsys, "--help", program=main)
    assert "Exit code 0 when everything is within tolerance, 1 otherwise." in outcome.out


def test_the_whole_reason_of_a_part_that_fails_is_printed(tmp_path, settings, capsys):
    def change(config):
        config["config"]["fine"]["encoder_depths"] = [2, 2, 1]

    folder, page = changed_folder(tmp_path, {"config.json": change}), tmp_path / "page.md"
    outcome = run(capsys, folder, "--section", "finetune", "--markdown", page, "-v", program=main)
    assert outcome.code == 1
    notes = [row.note for row in run_section("finetune", Recorded(folder), settings).rows if row.verdict == FAILED]
    assert max(map(len, notes)) > 300
    assert all(note in outcome.out and note.replace("|", "\\|") in page.read_text() for note in notes)
    assert "INFO benchmarks.parity.runner: finetune, " in outcome.err
    assert "Traceback" in outcome.err  # of the part, as a log line


def test_it_is_no_command_of_the_wheel(capsys):
    assert run(capsys, "parity", "--help").code == 2
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "benchmarks.parity", "--section", "grouping", shared_dir("reference")]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "in 1 sections: 26 ok; " in done.stdout
