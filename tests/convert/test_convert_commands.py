"""`i2p checkpoint import` and `export` as a person uses them."""

import json

import pytest
import torch

from tests.support.commands import run
from tests.support.convert import entries_of, tiny_clip, write_file
from tests.support.models import TINY, TINY_CHANNELS, tiny_model

SIZES = [
    argument
    for key in ("groups", "neighbours", "heads")
    for argument in ("--set", f"model.{key}={json.dumps(getattr(TINY, key))}")
]


def test_in_out_and_a_look_at_it(tmp_path, capsys):
    model = tiny_model()
    entries = entries_of(model)
    entries.update({f"module.clip_model.{name}": value for name, value in tiny_clip(TINY_CHANNELS).items()})
    write_file(tmp_path / "in.pth", entries)
    outcome = run(capsys, "checkpoint", "import", tmp_path / "in.pth", "--out", tmp_path / "out", *SIZES)
    assert (outcome.code, outcome.err) == (0, "")
    for text in ("pretraining", "5 epochs", "3 views, 6 channels", "left out: the frozen teacher, 5 tensors",
                 "assumed, because weights do not show it: masking.ratio = 0.8"):  # fmt: skip
        assert text in outcome.out
    outcome = run(capsys, "checkpoint", "info", tmp_path / "out")
    assert outcome.code == 0
    for text in ("in.pth, sha256", "5 epochs, steps unknown", "acc ", "groups = [48, 24, 8]"):
        assert text in outcome.out
    outcome = run(capsys, "checkpoint", "export", tmp_path / "out", "--out", tmp_path / "back.pth",
                  "--teacher", tmp_path / "in.pth", "--no-prefix")  # fmt: skip
    assert outcome.code == 0
    back = torch.load(tmp_path / "back.pth", weights_only=True)["base_model"]
    assert list(back) == [name.removeprefix("module.") for name in entries]
    assert all(torch.equal(back[name.removeprefix("module.")], value) for name, value in entries.items())


def test_faults_are_told_in_words(tmp_path, capsys):
    entries = entries_of(tiny_model())
    del entries["module.mask_token"]
    write_file(tmp_path / "in.pth", entries)
    command = ("checkpoint", "import", tmp_path / "in.pth", "--out", tmp_path / "out")
    outcome = run(capsys, *command, *SIZES)
    assert outcome.code == 1
    assert "1 of 174 names missing: mask_token" in outcome.err
    assert "Traceback" not in outcome.err
    outcome = run(capsys, *command, "--set", "model.grups=[1]", "--set", "clasifier.radius=[1]")
    assert outcome.code == 2
    assert "model.grups is not a setting; did you mean model.groups?" in outcome.err
    assert "[clasifier] is not a section; did you mean classifier?" in outcome.err
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore:The number of unique classes")
def test_an_imported_encoder_is_evaluated_like_any_other(tmp_path, capsys):
    write_file(tmp_path / "in.pth", entries_of(tiny_model()))
    assert run(capsys, "checkpoint", "import", tmp_path / "in.pth", "--out", tmp_path / "out", *SIZES).code == 0
    corpora = ("--train", "synthetic:?count=36&seed=1", "--test", "synthetic:?count=24&seed=1&split=test")
    outcome = run(capsys, "evaluate", tmp_path / "out", *corpora, "--points", 64, "--seeds", 1, "--json",
                  "--device", "cpu")  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert set(json.loads(outcome.out)["rows"]) == {"coordinates", "untrained", "trained"}
