"""Files from elsewhere are named for what they are; text is read as people save it; names cannot steer a terminal."""

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cli.show.terminal import EscapingFormatter, escaped
from pipeline.errors import TeacherError
from pipeline.teacher.weights import read_weights
from teacher_cache.foreign import decode_text, misnomer, without_wrappers
from tests.support.commands import run
from trainer.checkpoints.reference.pth_file import read_reference
from trainer.errors import CheckpointError

NOT_WEIGHTS = {
    "empty": (b"", "is empty; download it again"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 598517440\n", "run `git lfs pull`"),
    "annex": (b"/annex/objects/SHA256E-s598517440--0.safetensors\n", "run `git annex get`"),
    "page": (b"\xef\xbb\xbf\r\n<!DOCTYPE html><html><head><title>Virus scan warning", "is a web page"),
    "plain page": (b"<HTML><body>404", "is a web page"),
    "store": (b"<?xml version='1.0'?><Error><Code>AccessDenied", "is XML"),
    "gzip": (b"\x1f\x8b\x08\0\0\0", "compressed with gzip"),
    "zeros": (bytes(5000), "begins with zeros"),
}


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".bin", ""])
@pytest.mark.parametrize("name", NOT_WEIGHTS)
def test_what_is_no_weights_file_is_named_whatever_its_suffix(tmp_path, name, suffix):
    data, said = NOT_WEIGHTS[name]
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(data)
    with pytest.raises(TeacherError, match=said):
        read_weights(path)
    with pytest.raises(CheckpointError, match=said):
        read_reference(path)


def test_sound_files_are_no_misnomers(tmp_path):
    save_file({"a": torch.zeros(3)}, tmp_path / "a.safetensors")
    torch.save({"a": torch.zeros(3)}, tmp_path / "a.pt")
    torch.save({"a": torch.zeros(3)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert [misnomer(path.read_bytes()[:1024]) for path in tmp_path.iterdir()] == [None] * 3


@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.", "model.", "module._orig_mod.", "_orig_mod.module.model."]
)
@pytest.mark.parametrize("container", [None, "state_dict", "model", "model_state_dict"])
def test_wrappers_are_taken_off_in_any_order(tmp_path, prefix, container):
    tower = {"class_embedding": torch.zeros(4), "conv1.weight": torch.ones(4, 3, 2, 2), "proj": torch.zeros(4, 2)}
    named = {f"{prefix}visual.{name}": value for name, value in tower.items()}
    torch.save(named if container is None else {container: named, "epoch": 3}, tmp_path / "a.pt")
    assert read_weights(tmp_path / "a.pt").tensors.keys() == tower.keys()
    if container is None:
        save_file(named, tmp_path / "a.safetensors")
        assert read_weights(tmp_path / "a.safetensors").tensors.keys() == tower.keys()


@pytest.mark.parametrize(
    ("names", "prefix"),
    [
        ([], ""),
        (["a", "b"], ""),
        (["module.a", "module.b"], "module."),
        (["module.a", "b"], ""),
        (["model.module.a", "model.module.b"], "model.module."),
        (["modulea", "moduleb"], ""),
    ],
)
def test_a_prefix_is_one_that_all_names_have(names, prefix):
    assert without_wrappers(names) == prefix


TOML = 'preset = "smoke"\n# Größe der Stichprobe\n[corpus]\npoints = 288\n'


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_settings_are_read_as_editors_save_them(tmp_path, capsys, encoding, end):
    (tmp_path / "mine.toml").write_bytes(TOML.replace("\n", end).encode(encoding))
    printed = run(capsys, "pretrain", tmp_path / "mine.toml", "--print-config")
    assert printed.code == 0, printed.err
    assert "points = 288" in printed.out


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (TOML.encode("cp1252"), "line 2 is not valid UTF-8: save the file as UTF-8"),
        (TOML.encode("utf-16")[:-1], "is not valid UTF-16"),
        (TOML.encode() + b"\0" * 9, "contains NUL bytes: the file is damaged"),
        (bytes(99), "begins with zeros"),
        (b"<html><body>404</body></html>", "is a web page"),
        (NOT_WEIGHTS["lfs"][0], "Git LFS pointer"),
        (b"preset = ", "not valid TOML"),
    ],
)
def test_settings_that_are_no_text_are_told_in_words(tmp_path, capsys, data, said):
    (tmp_path / "mine.toml").write_bytes(data)
    outcome = run(capsys, "pretrain", tmp_path / "mine.toml", "--print-config")
    assert outcome.code == 2
    assert said in outcome.err
    assert "Traceback" not in outcome.err


def test_text_says_which_line(tmp_path):
    with pytest.raises(ValueError, match="line 3 contains NUL bytes"):
        decode_text(b"a\nb\nc\0\n")


EVIL = "chair\x1b[2J\x07\rforged\u202egnp\u200b\x9b31m\udc80"


def test_what_could_steer_a_terminal_is_written_out():
    assert escaped(EVIL) == r"chair\x1b[2J\x07\rforged\u202egnp\u200b\x9b31m\udc80"
    assert escaped("two\nlines\tand a tab, Möbel 가구") == "two\nlines\tand a tab, Möbel 가구"
    record = logging.LogRecord("pipeline", logging.WARNING, "", 0, "quarantined %s", (EVIL,), None)
    assert EscapingFormatter("%(message)s").format(record) == f"quarantined {escaped(EVIL)}"


def test_names_of_files_and_reasons_reach_the_terminal_escaped(tmp_path, capsys):
    folder = tmp_path / "set" / "chair\x1b[2J\u202e"
    folder.mkdir(parents=True)
    (folder / "a\x07.xyz").write_text("1 2 \x1b[31m\n")
    outcome = run(capsys, "corpus", "info", f"folder:{tmp_path / 'set'}", "--points", 64, "--check")
    text = outcome.out + outcome.err
    assert r"chair\x1b[2J" in text
    assert not set("\x1b\x07\u202e") & set(text)


def test_every_command_speaks_through_the_escape():
    """Whoever calls click.echo goes round it."""
    root = Path(__file__).parents[2] / "cli"
    direct = [path.name for path in root.rglob("*.py") if "click.echo(" in path.read_text()]
    assert direct == ["terminal.py"]
