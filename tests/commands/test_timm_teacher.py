"""The command line with a tower of timm: build, repair by the cache's own notes, and score."""

import json
from pathlib import Path

import timm
from safetensors.torch import save_file

import teacher_cache
from tests.support.commands import run

SIZES = "--set", "projection.image_side=48", "--set", "projection.patch_side=16"
TEACHER = (
    "--set", "teacher.architecture=timm:test_vit3", "--set", "teacher.pretrained=random",
    "--set", "teacher.image_side=48", "--set", "teacher.device=cpu",
)  # fmt: skip
CORPUS = "--set", "corpus.uri=synthetic:?count=5&seed=1", "--set", "corpus.points=256"


def test_a_cache_of_a_timm_teacher_is_built_and_repaired(tmp_path: Path, capsys) -> None:
    root = "--set", f"cache.root={tmp_path}", "--set", "cache.class_token=float16"
    outcome = run(capsys, "cache", "build", "smoke", *CORPUS, *SIZES, *TEACHER, *root)
    assert outcome.code == 0, outcome.err
    (path,) = [each.parent for each in tmp_path.glob("*/manifest.json")]
    cache = teacher_cache.open(path)
    assert cache[4].features.shape == (3, 9, 96)
    assert cache[4].class_token.shape == (3, 96)
    assert (cache[4].saliency > 0).all()
    teacher = json.loads((path / "recipe.json").read_text())["recipe"]["teacher"]
    assert teacher["architecture"] == "timm:test_vit3"
    assert teacher["sizes"]["image_side"] == 48
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file() and "logs" not in file.parts}
    for chunk in (path / "features").glob("c*"):
        chunk.unlink()
    assert sum(file.exists() for file in before) < len(before)
    outcome = run(capsys, "cache", "repair", path)
    assert outcome.code == 0, outcome.err
    assert {file: file.read_bytes() for file in before} == before


def test_sizes_that_do_not_fit_are_usage_errors(tmp_path: Path, capsys) -> None:
    root = "--set", f"cache.root={tmp_path}"
    outcome = run(capsys, "cache", "build", "smoke", *CORPUS, *TEACHER, *root, "--set", "projection.image_side=96")
    assert outcome.code != 0
    assert "is not the 48 that teacher.architecture = timm:test_vit3 takes" in outcome.err


def test_a_timm_teacher_is_scored_beside_random_ones(capsys) -> None:
    options = "--architecture", "timm:test_vit3", "--pretrained", "random", "--image-side", 48, "--shapes", 72
    options += "--normalisation", "half", "--points", 64, "--seeds", 1, "--device", "cpu"
    scored = run(capsys, "teacher", "eval", *options, "--json")
    assert scored.code == 0, scored.err
    found = json.loads(scored.out)
    assert found["projection"]["image_side"] == 48
    assert found["projection"]["patch_side"] == 16
    assert found["corpora"]["synthetic"]["zero_shot"] is None
    assert set(found["corpora"]["synthetic"]["rows"]) == {"teacher", "random"}
    assert found["projection"]["normalisation"] == "half"


def test_images_are_normalised_as_asked_or_as_the_weights_know_them(tmp_path: Path, capsys) -> None:
    name = "timm:vit_small_patch16_224"  # its tags know ImageNet's moments and those of timm 0.5
    options = "--architecture", name, "--image-side", 32, "--shapes", 72, "--points", 64, "--seeds", 1
    weights = tmp_path / "some.safetensors"
    save_file(timm.create_model(name.removeprefix("timm:")).state_dict(), weights)
    unsaid = run(capsys, "teacher", "eval", *options, "--weights", weights)
    assert unsaid.code != 0
    assert "imagenet or half; the file does not say with which\n  Set it with --normalisation." in unsaid.err
    wrong = run(capsys, "teacher", "eval", *options, "--weights", weights, "--normalisation", "clip")
    assert wrong.code != 0
    assert "normalisation clip is not the imagenet or half that timm:vit_small_patch16_224 was trained" in wrong.err
