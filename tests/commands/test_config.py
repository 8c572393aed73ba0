"""Experiments: layers, every problem at once, presets that stay valid, a resolved config that reads back."""

import dataclasses
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Annotated, get_args, get_origin, get_type_hints

import pytest
from annotated_types import Ge, Gt, Le, Lt

from cli.experiment.sections import SECTIONS
from cli.experiment.toml import ConfigError, load_experiment, preset_names, preset_text, to_toml
from pipeline.settings import faults, typed


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_valid_and_says_what_it_is_for(name):
    assert load_experiment(name).name == name
    assert preset_text(name).startswith("# ")
    assert f"{name}" in preset_text(name).split("\n\n")[0]


def test_the_presets_the_readme_names_exist():
    assert {"quickstart", "recommended", "reference", "shapenet", "smoke", "study"} <= set(preset_names())


@pytest.mark.parametrize("name", preset_names())
def test_resolved_config_reads_back_equal(name, tmp_path):
    experiment = load_experiment(name)
    path = write(tmp_path / f"{name}.toml", to_toml(experiment))
    assert load_experiment(path) == experiment


def test_layers_win_in_order(tmp_path):
    path = write(tmp_path / "mine.toml", 'preset = "quickstart"\n[trainer]\nepochs = 7\nbatch_size = 8\n')
    experiment = load_experiment(path, ["trainer.batch_size=4"])
    assert experiment.name == "mine"
    assert experiment.corpus.uri == load_experiment("quickstart").corpus.uri  # the preset
    assert experiment.trainer.epochs == 7  # the file
    assert experiment.trainer.batch_size == 4  # the command line
    assert experiment.trainer.weight_decay == 0.05  # the default


def test_overrides_are_toml_or_else_text():
    experiment = load_experiment(
        "quickstart",
        ["model.encoder_depths=[1, 1, 1]", "trainer.learning_rate=1", "cache.name=run one", 'cache.root="1"'],
    )
    assert experiment.model.encoder_depths == (1, 1, 1)
    assert experiment.trainer.learning_rate == 1.0
    assert isinstance(experiment.trainer.learning_rate, float)
    assert experiment.cache.name == "run one"
    assert experiment.cache.root == "1"


def test_all_problems_are_reported_at_once():
    with pytest.raises(ConfigError) as caught:
        load_experiment(
            "quickstart",
            [
                "trainer.leraning_rate=1",
                "projection.image_side=230",
                "masking.mode=salient",
                "trainer.epochs=1.5",
                "trainer.tensorboard=1",
                "trainer.temperature=2",
                "optimiser.lr=1",
                "nonsense",
            ],
        )
    first, *rest = str(caught.value).splitlines()
    assert first == "8 problems in quickstart"
    assert sorted(rest) == sorted(
        [
            "  --set nonsense: expected section.key=value",
            "  masking.mode = 'salient' is none of saliency, random, block",
            "  trainer.leraning_rate is not a setting; did you mean trainer.learning_rate?",
            "  trainer.epochs = 1.5 is not a whole number",
            "  trainer.tensorboard = 1 is not true or false",
            "  trainer.temperature is not a setting; did you mean alignment.temperature?",
            "  [optimiser] is not a section; allowed: " + ", ".join(SECTIONS),
            "  projection.image_side = 230 is not a multiple of patch_side = 16",
        ]
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.points=4096", "trainer.points = 4096 is more than the stored corpus.points = 1024"),
        ("evaluation.points=64", "needs at least 128 points, more than evaluation.points = 64"),
        ("projection.points=2000", "projection.points = 2000 is more than the stored corpus.points = 1024"),
        ("model.heads=7", "model.encoder_dims has 48, which is not a multiple of heads = 7"),
        ("model.neighbours=[16, 8]", "model.neighbours = (16, 8) must have one value per level"),
        ("trainer.scale=[1.0]", "trainer.scale = [1.0] has 1 entries, not 2"),
    ],
)
def test_impossible_combinations_are_refused(override, message):
    with pytest.raises(ConfigError) as caught:
        load_experiment("quickstart", [override])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.weight_decay=inf", "trainer.weight_decay = inf is infinite"),
        ("trainer.weight_decay=true", "trainer.weight_decay = True is not a number"),
        ("trainer.tensorboard=1", "trainer.tensorboard = 1 is not true or false"),
        ("trainer.seed=9223372036854775808", "trainer.seed = 9223372036854775808 is outside 0..2^63-1"),
        ("trainer.prefetch=1000000001", "trainer.prefetch = 1000000001 is more than 1,000,000,000"),
        ("corpus.uri=3", "corpus.uri = 3 is not text"),
        ("model.groups=3", "model.groups = 3 is not a list of whole numbers"),
        ("evaluation.grid=['a', 1.0]", "evaluation.grid = ['a', 1.0] has 'a', which is not a number"),
        ("cache.shapes_per_shard=1.5", "cache.shapes_per_shard = 1.5 is not a whole number"),
        ("cache.features=float64", "cache.features = 'float64' is none of float16, float32, int8"),
    ],
)
def test_types_and_bounds_are_named_in_one_line_each(override, message):
    with pytest.raises(ConfigError) as caught:
        load_experiment("quickstart", [override])
    assert caught.value.problems == [message]


def test_settings_load_what_checks_them_only_when_something_is_checked():
    """And neither torch."""
    code = (
        "import sys, cli.experiment.toml as toml\n"
        "assert not {'pydantic', 'torch'} & set(sys.modules)\n"
        "toml.load_experiment('quickstart')\n"
        "assert 'torch' not in sys.modules and 'pydantic' in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_file_that_is_not_there_not_toml_or_of_an_unknown_preset(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        load_experiment(str(tmp_path / "absent.toml"))
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_experiment(write(tmp_path / "bad.toml", "[trainer\n"))
    with pytest.raises(ConfigError, match=r"preset = 'quikstart' is not a preset; did you mean quickstart"):
        load_experiment(write(tmp_path / "odd.toml", 'preset = "quikstart"\n'))
    with pytest.raises(ConfigError, match="epochs = 3 is outside any section"):
        load_experiment(write(tmp_path / "flat.toml", "epochs = 3\n"))
    with pytest.raises(ConfigError, match=r"neither a preset nor a .toml file; did you mean shapenet"):
        load_experiment("shapnet")


@pytest.mark.parametrize("section", SECTIONS)
def test_every_setting_is_documented_where_it_is_declared(section):
    cls = SECTIONS[section]
    # Settings stand at the margin, what continues a line is indented; a section may extend another.
    lines = [
        line
        for base in cls.__mro__
        if dataclasses.is_dataclass(base)
        for line in (inspect.getdoc(base) or "").splitlines()
    ]
    documented = {line.split()[0].rstrip(".:,") for line in lines if line[:1].strip()}
    assert {field.name for field in dataclasses.fields(cls)} <= documented


def test_reference_preset_answers_every_quirk_as_the_reference_does():
    from trainer.models.config import REFERENCE_QUIRKS

    model = load_experiment("reference").model
    assert {key: getattr(model, key) for key in REFERENCE_QUIRKS} == dict(REFERENCE_QUIRKS)


def beyond(cls):
    """(name, value just outside, value at the bound) of each bound of a section's single numbers."""
    for name, hint in get_type_hints(cls, include_extras=True).items():
        kind, *bounds = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        step = 1 if kind is int else 1e-6
        for bound in bounds if kind in (int, float) else ():
            match bound:
                case Ge(ge=limit):
                    yield name, limit - step, limit
                case Gt(gt=limit):
                    yield name, kind(limit), limit + step
                case Le(le=limit):
                    yield name, limit + step, limit
                case Lt(lt=limit):
                    yield name, kind(limit), limit - step


@pytest.mark.parametrize("section", [name for name in SECTIONS if name not in ("cache", "teachers")])
def test_every_bound_is_where_its_annotation_says(section):
    cls = SECTIONS[section]
    bounds = list(beyond(cls))
    assert bounds
    for name, outside, inside in bounds:
        assert [text for text in faults(cls(**{name: outside})) if text.startswith(f"{name} = {outside!r} is ")]
        assert list(faults(cls(**{name: inside}))) == []


def test_lists_are_tuples_and_whole_numbers_are_numbers_where_a_section_says_so():
    values, wrong = typed(SECTIONS["trainer"], {"scale": [1, 2], "shift": 0, "epochs": 0, "seed": True, "betas": "ab"})
    assert values == {"scale": (1, 2), "shift": 0, "epochs": 0}  # what is out of bounds is told by the section
    assert sorted(wrong) == ["betas = 'ab' is not a list of numbers", "seed = True is not a whole number"]
    values, wrong = typed(SECTIONS["trainer"], {"scale": [1, 2], "shift": 0})
    assert [type(value) for value in (*values["scale"], values["shift"])] == [float] * 3
    with pytest.raises(KeyError):
        typed(SECTIONS["trainer"], {"epoch": 1})
