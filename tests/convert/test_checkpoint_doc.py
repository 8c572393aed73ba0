"""docs/checkpoints.md says what is so: its entries are the header's, its examples run, its commands exist."""

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cli.commands.checkpoint import checkpoint as command
from tests.support.convert import entries_of, optimizer_state, write_file
from tests.support.finetune import tiny_classifier
from tests.support.models import TINY, tiny_model
from trainer.checkpoints.files import KINDS, Header
from trainer.checkpoints.reference.convert import import_reference
from trainer.models.config import MaskingConfig

TEXT = (Path(__file__).parents[2] / "docs" / "checkpoints.md").read_text(encoding="utf-8")
STATED = {"model": {"groups": TINY.groups, "neighbours": TINY.neighbours, "heads": TINY.heads}}


@pytest.fixture
def imported(tmp_path) -> Path:
    model = tiny_model(targets="3d", masking=MaskingConfig(mode="random"))
    write_file(tmp_path / "file.pth", entries_of(model), optimizer=optimizer_state(model))
    return import_reference(tmp_path / "file.pth", tmp_path / "out", settings=STATED).path


def test_the_table_lists_the_entries_of_a_header():
    rows = re.search(r"\| entry \| type \| meaning \|\n(.*?)\n\n", TEXT, re.DOTALL)
    assert rows is not None
    listed = {name for row in rows[1].splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert listed == {"format", "version", "sha256"} | {field.name for field in fields(Header)}
    assert all(f"`{kind}`" in TEXT for kind in KINDS)


def test_a_checkpoint_is_readable_by_the_page_alone(imported):
    raw = (imported / "checkpoint.json").read_bytes()
    header = json.loads(raw)
    assert raw == (json.dumps(header, indent=1, sort_keys=True) + "\n").encode()
    assert (header["format"], header["version"], header["kind"]) == ("i2p-checkpoint", 1, "pretraining")
    assert sorted(header["files"]) == ["model.safetensors", "optimizer.safetensors"]
    paragraph = next(part for part in TEXT.split("\n\n") if part.startswith("`origin` in the header"))
    assert set(header["origin"]) == set(re.findall(r"`(\w+)`", paragraph)) - {"origin"}
    blob = (imported / "model.safetensors").read_bytes()
    size = int.from_bytes(blob[:8], "little")
    entry = json.loads(blob[8 : 8 + size])["mask_token"]
    first, last = entry["data_offsets"]
    own = torch.frombuffer(bytearray(blob[8 + size + first : 8 + size + last]), dtype=torch.float32)
    model = load_file(imported / "model.safetensors")
    assert torch.equal(own.view(entry["shape"]), model["mask_token"])
    assert {str(value.dtype) for value in model.values()} == {"torch.float32", "torch.int64"}
    state = load_file(imported / "optimizer.safetensors")
    assert {key.partition("/")[0] for key in state} == {"exp_avg", "exp_avg_sq", "step"}
    assert all(value.shape == () for key, value in state.items() if key.startswith("step/"))


def test_the_python_examples_run(imported, tmp_path):
    write_file(tmp_path / "ckpt-best.pth", entries_of(tiny_model()))
    paths = {"runs/quickstart": str(imported), "models/i2p-mae": str(imported)}
    scope: dict = {"classifier": tiny_classifier()}
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        if "import_reference" in block:  # the tiny model's groups are not the paper's
            block = block.replace('"models/i2p-mae")', f'"{tmp_path}/second", settings=stated)')
            scope["stated"] = STATED
            block = block.replace('"ckpt-best.pth"', f'"{tmp_path}/ckpt-best.pth"')
        for name, path in paths.items():
            block = block.replace(f'"{name}"', f'"{path}"')
        exec(block, scope)  # noqa: S102
    assert scope["features"].shape == (8, 3 * sum(TINY.encoder_dims))
    assert scope["converted"].path == tmp_path / "second"


def test_the_commands_and_their_options_exist():
    lines = re.findall(r"^i2p checkpoint (\w+) (.*)$", TEXT, re.MULTILINE)
    assert {name for name, _ in lines} == {"import", "export"}
    for name, rest in lines:
        known = {text for option in command.commands[name].params for text in (*option.opts, *option.secondary_opts)}
        assert set(re.findall(r"(--[\w-]+)", rest.split("#")[0])) <= known
