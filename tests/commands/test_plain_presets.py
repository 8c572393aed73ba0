"""Presets of the family: one cache for all that are compared, and settings that differ where the methods do."""

import dataclasses

import pytest

from cli.experiment.toml import load_experiment
from trainer.models.config import ModelConfig, PlainConfig

CACHED = ("corpus", "projection", "teacher", "cache", "build")


def differing(one, other, section):
    first, second = (dataclasses.asdict(getattr(load_experiment(name), section)) for name in (one, other))
    return {key for key in first if first[key] != second.get(key)}


@pytest.mark.parametrize("name", ["point-mae", "act-like", "point-m2ae", "i2p"])
def test_all_that_are_compared_read_one_cache(name):
    assert [section for section in CACHED if differing("shapenet", name, section)] == []
    assert differing("shapenet", name, "evaluation") <= {"feature", "protocol", "seeds", "reference_c"}
    assert load_experiment(name).trainer.teacher == "cached"


def test_each_preset_is_its_methods():
    maps = {name: load_experiment(name) for name in ("point-mae", "act-like", "point-m2ae", "i2p")}
    assert maps["point-mae"].model == PlainConfig(targets="3d", fps_skip_near_origin=True)
    assert maps["act-like"].model == PlainConfig(
        targets="2d", fps_skip_near_origin=True, front="class", decoder_depth=2
    )
    assert maps["i2p"].model == ModelConfig.reference()
    assert maps["point-m2ae"].model == ModelConfig.reference(targets="3d")
    chosen = {
        name: (
            made.masking.mode,
            made.masking.ratio,
            made.trainer.batch_size,
            made.trainer.points,
            made.trainer.horizon,
        )
        for name, made in maps.items()
    }
    assert chosen == {
        "point-mae": ("random", 0.6, 128, 1024, 300),
        "act-like": ("random", 0.8, 128, 1024, 300),
        "point-m2ae": ("random", 0.8, 128, 2048, 400),
        "i2p": ("saliency", 0.8, 64, 2048, 400),
    }
    assert maps["act-like"].trainer.final_learning_rate == 1e-7
    assert {made.trainer.epochs for made in maps.values()} == {301}
    assert {made.alignment.weight for made in maps.values()} == {0.0}


def test_the_studys_two_students_differ_in_the_student_alone():
    assert [
        section
        for section in (*CACHED, "trainer", "evaluation", "alignment")
        if differing("study", "study-plain", section)
    ] == []
    assert differing("study-plain", "study", "masking") == {"ratio"}
    assert load_experiment("study-plain").model.architecture == "plain"


def test_any_preset_goes_onto_the_plain_student():
    made = load_experiment("quickstart", ["model.architecture=plain", "model.depth=2"])
    assert made.model == PlainConfig(depth=2)
    assert made.alignment.weight == load_experiment("quickstart").alignment.weight
    back = load_experiment("study-plain", ["model.architecture=hierarchical"])
    assert back.model == ModelConfig()
