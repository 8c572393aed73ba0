"""The commands as a person uses them: what they print, what they leave, what they answer a script."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from cli.main import COMMANDS
from cli.show.progress import Progress, human_seconds
from tests.support.commands import run
from tests.support.limits import HANG, heed_interruptions

ROOT = Path(__file__).resolve().parents[2]


def test_pretrain_leaves_what_it_promises_and_prints_the_score(smoke, capsys):
    outcome = run(capsys, *smoke.arguments)
    assert outcome.code == 0
    assert "cache complete: 96 shapes" in outcome.err
    assert "already complete: 2 epochs" in outcome.err
    for row in ("always the largest class", "coordinate statistics", "untrained encoder", "trained encoder"):
        assert row in outcome.out
    assert f"encoder     {smoke.run_dir / 'checkpoints' / 'epoch-0002'}" in outcome.out
    for name in ("config.toml", "train.jsonl", "metrics.json", "curves.png"):
        assert (smoke.run_dir / name).stat().st_size > 0
    assert list((smoke.run_dir / "tensorboard").iterdir())


def test_the_printed_score_is_the_recorded_one(smoke, capsys):
    outcome = run(capsys, *smoke.arguments)
    rows = json.loads((smoke.run_dir / "metrics.json").read_text())["evaluation"]["rows"]
    printed = next(line for line in outcome.out.splitlines() if "  trained encoder" in line)
    assert f"{100 * rows['trained']['accuracy']:.1f}%" in printed


def test_the_saved_config_repeats_the_run(smoke, capsys):
    from cli.experiment.toml import load_experiment

    saved = load_experiment(str(smoke.run_dir / "config.toml"))
    again = load_experiment("smoke", [f"cache.root={smoke.folder / 'caches'}"])
    assert (saved.model, saved.trainer, saved.cache) == (again.model, again.trainer, again.cache)
    printed = run(capsys, "pretrain", "smoke", "--set", f"cache.root={smoke.folder / 'caches'}", "--print-config")
    assert printed.out == (smoke.run_dir / "config.toml").read_text()


def test_a_run_with_other_settings_is_refused_in_the_same_folder(smoke, capsys):
    outcome = run(capsys, *smoke.arguments, "--set", "trainer.learning_rate=0.01")
    assert outcome.code == 1
    assert "trainer.learning_rate was 0.001, is now 0.01" in outcome.err
    assert "Traceback" not in outcome.err


def test_cache_build_is_a_no_op_on_a_complete_cache(smoke, capsys):
    before = {path: path.stat().st_mtime_ns for path in smoke.cache.rglob("*") if path.is_file()}
    outcome = run(capsys, "cache", "build", "smoke", "--set", f"cache.root={smoke.cache.parent}")
    assert outcome.code == 0
    assert Path(outcome.out.strip()) == smoke.cache
    after = {path: path.stat().st_mtime_ns for path in smoke.cache.rglob("*") if path.is_file()}
    assert {path.name for path in after if after[path] != before.get(path)} <= {"manifest.json"}


def test_cache_info_prints_recipe_size_and_counts(smoke, capsys):
    outcome = run(capsys, "cache", "info", smoke.cache)
    assert outcome.code == 0
    for text in (
        "complete",
        "96 of 96 planned, 0 quarantined",
        "256 points, 3 views of 224 x 224",
        "[teacher]",
        "kB a shape",
    ):
        assert text in outcome.out


def test_cache_verify_finds_a_flipped_bit_and_says_where(smoke, capsys, tmp_path):
    assert run(capsys, "cache", "verify", smoke.cache).code == 0
    damaged = tmp_path / "damaged"
    shutil.copytree(smoke.cache, damaged)
    victim = max((path for path in damaged.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    outcome = run(capsys, "cache", "verify", damaged)
    assert outcome.code == 1
    assert str(victim.relative_to(damaged)) in outcome.out
    assert "1 problems" in outcome.err


def _tree(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).parts[0] not in ("logs", "tmp")
    }


def test_cache_repair_builds_only_what_is_damaged(smoke, capsys, tmp_path):
    damaged = tmp_path / smoke.cache.name
    shutil.copytree(smoke.cache, damaged)
    before = _tree(damaged)
    flipped, *_, removed = (name for name in sorted(before) if name.startswith("features/") and "json" not in name)
    data = bytearray(before[flipped])
    data[-1] ^= 4
    (damaged / flipped).write_bytes(data)
    (damaged / removed).unlink()
    (damaged / "recipe.json").write_text("{}")
    untouched = {path: path.stat().st_mtime_ns for path in (damaged / "receipts").iterdir()}
    outcome = run(capsys, "cache", "repair", damaged)
    assert outcome.code == 0, outcome.err
    assert "rebuilding 2 shards" in outcome.err
    assert _tree(damaged) == before
    assert sum(path.stat().st_mtime_ns == stamp for path, stamp in untouched.items()) == len(untouched) - 2
    assert run(capsys, "cache", "repair", damaged).code == 0


def test_cache_repair_when_the_manifest_hides_other_damage(smoke, capsys, tmp_path):
    damaged = tmp_path / smoke.cache.name
    shutil.copytree(smoke.cache, damaged)
    before = _tree(damaged)
    victim = next(name for name in sorted(before) if name.startswith("saliency/") and "json" not in name)
    (damaged / victim).write_bytes(bytes(len(before[victim])))
    (damaged / "manifest.json").write_text("not a manifest")
    assert run(capsys, "cache", "repair", damaged).code == 0
    assert _tree(damaged) == before


def test_cache_repair_says_what_it_cannot_mend(smoke, capsys, tmp_path):
    strange = tmp_path / smoke.cache.name
    shutil.copytree(smoke.cache, strange)
    (strange / "notes.txt").write_text("mine")
    outcome = run(capsys, "cache", "repair", strange)
    assert outcome.code == 1
    assert "notes.txt: not a file of this cache" in outcome.out
    (strange / "logs" / "config.toml").unlink()
    (strange / "label" / "c.0").unlink()
    assert "give the experiment it was built from" in run(capsys, "cache", "repair", strange).err


def test_cache_list_shows_all_under_a_root(smoke, capsys, tmp_path):
    shutil.copytree(smoke.cache, tmp_path / "one")
    shutil.copytree(smoke.cache, tmp_path / "two")
    (tmp_path / "two" / "manifest.json").unlink()
    (tmp_path / "other").mkdir()
    outcome = run(capsys, "cache", "list", tmp_path)
    assert outcome.code == 0
    first, second = outcome.out.splitlines()
    assert first.split()[:4] == ["one", "complete", "96", "shapes"]
    assert second.split()[:4] == ["two", "unfinished", "96", "shapes"]
    assert "synthetic, i2p-vit-tiny-16" in first
    (tmp_path / "two" / "recipe.json").write_text("{}")
    broken = run(capsys, "cache", "list", tmp_path)
    assert broken.code == 1
    assert "cannot be read" in broken.err


def test_pictures_are_written(smoke, capsys, tmp_path):
    assert run(capsys, "cache", "render", smoke.cache, "--shape", 3, "--out", tmp_path / "cache.png").code == 0
    assert run(capsys, "corpus", "render", "synthetic:?count=4", "--out", tmp_path / "corpus.png").code == 0
    for name in ("cache.png", "corpus.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    outcome = run(capsys, "cache", "render", smoke.cache, "--shape", 96, "--out", tmp_path / "none.png")
    assert outcome.code == 2
    assert "96 is outside 0..95" in outcome.err


def test_corpus_info_counts_and_finds_what_cannot_be_used(capsys, tmp_path):
    good = np.random.default_rng(0).normal(size=(64, 3))
    for name in ("chair/a", "chair/b", "lamp/c"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        np.save(tmp_path / f"{name}.npy", good.astype(np.float32))
    (tmp_path / "lamp" / "d.npy").write_bytes(b"not an array")
    outcome = run(capsys, "corpus", "info", f"folder:{tmp_path}", "--points", 64)
    assert outcome.code == 0
    assert "4, 64 points each" in outcome.out
    assert "2 classes" in outcome.out
    outcome = run(capsys, "corpus", "info", f"folder:{tmp_path}", "--points", 64, "--check")
    assert outcome.code == 1
    assert "refused   1 of 4" in outcome.out
    assert "d.npy" in outcome.out


def test_evaluate_scores_a_checkpoint_and_prints_json(smoke, capsys):
    corpora = ("--train", "synthetic:?count=72&seed=1", "--test", "synthetic:?count=36&seed=1&split=test")
    outcome = run(capsys, "evaluate", smoke.run_dir, *corpora, "--points", 256, "--seeds", 1, "--json")
    assert outcome.code == 0
    result = json.loads(outcome.out)
    assert set(result["rows"]) == {"coordinates", "untrained", "trained"}
    outcome = run(capsys, "evaluate", smoke.run_dir, *corpora, "--points", 32)
    assert outcome.code == 2
    assert (
        "--points 32 is too few: model.groups = (64, 32, 8) with model.neighbours = (8, 4, 4) needs at least 64"
        in outcome.err
    )


def test_checkpoint_info_and_a_damaged_checkpoint(smoke, capsys, tmp_path):
    outcome = run(capsys, "checkpoint", "info", smoke.run_dir)
    assert outcome.code == 0
    assert "2 epochs, 12 steps" in outcome.out
    damaged = tmp_path / "epoch-0002"
    shutil.copytree(smoke.run_dir / "checkpoints" / "epoch-0002", damaged)
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    outcome = run(capsys, "checkpoint", "info", damaged)
    assert outcome.code == 1
    assert "model.safetensors has" in outcome.err
    assert "Traceback" not in outcome.err


def test_presets_are_listed_with_what_they_are_for_and_printed(capsys):
    listed = run(capsys, "presets")
    assert listed.code == 0
    assert any(line.startswith("quickstart") and "minutes" in line for line in listed.out.splitlines())
    assert run(capsys, "presets", "quickstart").out == (ROOT / "cli/presets/quickstart.toml").read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("cache", "build", "nothing"), 2, "neither a preset nor a .toml file"),
        (("pretrain", "smoke", "--set", "trainer.epoch=3"), 2, "did you mean trainer.epochs?"),
        (("corpus", "info", "meshes:here"), 1, "meshes"),
        (("corpus", "info", "folder:/nowhere/at/all"), 1, "/nowhere/at/all"),
        (("cache", "info", "."), 1, "expected a cache"),
        (("no-such-command",), 2, "No such command"),
        (("cache", "build", "--no-such-option"), 2, "No such option"),
    ],
)
def test_errors_are_words_with_an_exit_code(capsys, arguments, code, text):
    outcome = run(capsys, *arguments)
    assert outcome.code == code
    assert text in outcome.err
    assert "Traceback" not in outcome.err


def test_a_teacher_that_cannot_be_downloaded_says_which_file_to_get(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    outcome = run(
        capsys, "cache", "build", "smoke", "--set", f"cache.root={tmp_path}",
        "--set", "teacher.architecture=ViT-B-16", "--set", "teacher.pretrained=openai",
    )  # fmt: skip
    assert outcome.code == 1
    assert "teacher.weights" in outcome.err


@pytest.mark.parametrize("name", [(), *[(name,) for name in COMMANDS]])
def test_help_names_every_option_and_gives_an_example(capsys, name):
    outcome = run(capsys, *name, "--help")
    assert outcome.code == 0
    assert "Usage: i2p" in outcome.out
    assert "xample" in outcome.out or not name or "Commands:" in outcome.out or name == ("presets",)


# The command, with a disk so slow that it cannot end before it is interrupted, however late that is noticed.
DAWDLING = """
import os, pathlib, sys, time
root = pathlib.Path(sys.argv[4].removeprefix("cache.root="))

def fsync(descriptor):
    time.sleep(0.2 if any(root.glob("*/receipts/*.json")) else 0)

os.fsync = fsync
from cli.main import main
main()
"""


def test_an_interrupted_build_answers_130_and_goes_on(capsys, tmp_path):
    wanted = ["cache", "build", "smoke", "--set", f"cache.root={tmp_path}", "--set", "cache.shapes_per_shard=4"]
    wanted += ["--set", "corpus.uri=synthetic:?count=48&seed=0"]
    process = subprocess.Popen(
        [sys.executable, "-c", DAWDLING, *wanted],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_interruptions,
    )
    deadline = time.monotonic() + HANG
    while time.monotonic() < deadline and not list(tmp_path.glob("*/receipts/*.json")):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=HANG)
    assert process.returncode == 130, err
    assert "run the same command again" in err
    done = run(capsys, *wanted)
    assert done.code == 0, done.err
    assert "already exist" in done.err
    assert " of 48 shapes" in done.err
    assert " 0 of 48 shapes" not in done.err


def test_progress_without_a_terminal_is_plain_lines(capsys):
    with Progress("work", 10, unit="things", initial=4) as progress:
        progress.update(10, spoilt=1)
    assert "work: 10/10 things" in capsys.readouterr().err
    assert [human_seconds(s) for s in (5, 65, 3900, float("inf"))] == ["5 s", "1 min 05 s", "1 h 05 min", "unknown"]
