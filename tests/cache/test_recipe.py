"""The recipe's hash changes exactly when bytes would, and configs report every fault."""

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from teacher_cache.config import CacheConfig
from teacher_cache.errors import CacheError, ManifestError, UnsupportedVersion
from teacher_cache.format.manifest import Description
from teacher_cache.recipe import Recipe, cache_directory
from teacher_cache.testing import SMALL_SCHEMA, make_recipe

CONFIG = CacheConfig()


@pytest.mark.parametrize(
    ("field", "value", "changes"),
    [
        ("root", "elsewhere", False),
        ("name", "other", False),
        ("format", "webdataset", True),
        ("shapes_per_shard", 32, True),
        ("features", "float32", True),
        ("features", "int8", True),
        ("channels", 64, True),
        ("untouched", "zero", True),
        ("class_token", "float16", True),
        ("depth", "none", True),
        ("compression", "none", True),
        ("level", 4, True),
    ],
)
def test_which_settings_change_the_hash(field: str, value: object, changes: bool) -> None:
    other = dataclasses.replace(CONFIG, **{field: value})  # type: ignore[arg-type]
    assert (make_recipe(other).hash != make_recipe(CONFIG).hash) is changes


def test_level_without_compression_changes_nothing() -> None:
    plain = CacheConfig(compression="none")
    assert make_recipe(dataclasses.replace(plain, level=9)).hash == make_recipe(plain).hash


def test_every_field_of_the_config_is_in_the_table_above() -> None:
    named = {
        "root",
        "name",
        "format",
        "shapes_per_shard",
        "features",
        "steps",
        "half_first",
        "channels",
        "sample",
        "untouched",
        "class_token",
        "depth",
        "compression",
        "level",
    }
    assert {field.name for field in dataclasses.fields(CacheConfig)} == named


def test_steps_are_in_the_recipe_where_they_change_bytes() -> None:
    whole = CacheConfig(features="int8")
    assert "steps" not in whole.storage()
    coarse = CacheConfig(features="int8", steps=28)
    assert make_recipe(coarse).hash != make_recipe(whole).hash
    assert CacheConfig.from_storage(coarse.storage()) == coarse
    assert list(CacheConfig(steps=28).problems()) == [
        'steps = 28 applies to int8 features only, and features = "float16"'
    ]
    assert list(CacheConfig(features="int8", steps=6).problems()) == ["steps = 6 is not in 7..127"]
    for storage in (whole.storage() | {"steps": 127}, CacheConfig().storage() | {"steps": 28}):
        with pytest.raises(ManifestError, match="steps"):
            CacheConfig.from_storage(storage)


def test_class_tokens_are_in_the_recipe_where_there_are_any() -> None:
    assert "class" not in CacheConfig().storage()
    stored = CacheConfig(class_token="float16")
    assert stored.storage()["class"] == "float16"
    assert CacheConfig.from_storage(stored.storage()) == stored
    assert list(CacheConfig(class_token="float32").problems()) == [  # type: ignore[arg-type]
        'class_token = "float32" is not one of none, float16'
    ]
    for value in ("none", "float32", True):
        with pytest.raises(ManifestError, match="class"):
            CacheConfig.from_storage(CacheConfig().storage() | {"class": value})


def test_half_first_is_of_int8_features_and_in_the_recipe() -> None:
    assert "half_first" not in CacheConfig(features="int8").storage()
    half = CacheConfig(features="int8", half_first=True)
    assert make_recipe(half).hash != make_recipe(CacheConfig(features="int8")).hash
    assert CacheConfig.from_storage(half.storage()) == half
    assert list(CacheConfig(half_first=True).problems()) == [
        'half_first = true applies to int8 features only, and features = "float16"'
    ]
    for storage in (CacheConfig().storage() | {"half_first": True}, half.storage() | {"half_first": False}):
        with pytest.raises(ManifestError, match="half_first"):
            CacheConfig.from_storage(storage)


def test_channels_and_their_sample_are_in_the_recipe_together() -> None:
    assert not {"channels", "sample"} & set(CacheConfig().storage())
    own = CacheConfig(channels=64)
    assert {"channels": 64, "sample": 256}.items() <= own.storage().items()
    assert make_recipe(CacheConfig(channels=64, sample=32)).hash != make_recipe(own).hash
    assert CacheConfig.from_storage(own.storage()) == own
    for settings, said in (
        ({"channels": -1}, "channels = -1 is neither 0 (the teacher's own channels) nor in 1..8192"),
        ({"channels": 8, "sample": 0}, "sample = 0 is not in 1..1048576"),
        (
            {"sample": 32},
            "sample = 32 is the number of shapes that a basis is fitted on, and channels = 0 uses no basis",
        ),
    ):
        assert list(CacheConfig(**settings).problems()) == [said]  # type: ignore[arg-type]
    plain = CacheConfig().storage()
    for storage in (plain | {"channels": 64}, plain | {"sample": 32}, plain | {"channels": 0, "sample": 32}):
        with pytest.raises(ManifestError, match=r"channels|sample"):
            CacheConfig.from_storage(storage)


def test_keeping_untouched_features_leaves_the_recipes_of_older_caches_alone() -> None:
    assert "untouched" not in CacheConfig().storage()
    zeroed = CacheConfig(untouched="zero")
    assert CacheConfig.from_storage(zeroed.storage()) == zeroed
    with pytest.raises(ManifestError, match="untouched"):
        CacheConfig.from_storage(CacheConfig().storage() | {"untouched": "keep"})


@pytest.mark.parametrize("part", ["corpus", "projection", "teacher", "storage"])
def test_every_part_is_hashed(part: str) -> None:
    recipe = make_recipe(CONFIG)
    other = dataclasses.replace(recipe, **{part: {**getattr(recipe, part), "added": 1}})
    assert other.hash != recipe.hash
    assert recipe.differences(other) == [f"{part}.added: not set here, 1 there"]


def test_hash_is_this_number_for_ever() -> None:
    """A change here renames every cache that exists: raise FORMAT_VERSION, or find what slipped."""
    recipe = Recipe(corpus={"a": 1.5}, projection={"b": (1, 2)}, teacher={"c": None}, storage={"d": "é"})
    spelled = (
        '{"corpus":{"a":1.5},"format_version":1,"projection":{"b":[1,2]},'
        '"storage":{"d":"\\u00e9"},"teacher":{"c":null}}'
    )
    assert recipe.hash == hashlib.sha256(spelled.encode()).hexdigest()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=5), json_values, max_size=4))
def test_json_round_trip(values: dict[str, object]) -> None:
    recipe = Recipe(corpus=values, projection={}, teacher={}, storage={})
    back = Recipe.from_json(json.loads(json.dumps(recipe.to_json())))
    assert back == recipe
    assert back.hash == recipe.hash
    assert back.differences(recipe) == []


def test_differences_name_each_setting() -> None:
    one = Recipe(corpus={"seed": 0}, projection={"points": [1, 2]}, teacher={}, storage={"deep": {"x": 1, "y": True}})
    two = Recipe(corpus={}, projection={"points": [1]}, teacher={}, storage={"deep": {"x": 1, "y": 1}})
    assert one.differences(two) == [
        "corpus.seed: 0 here, not set there",
        "projection.points: [1, 2] here, [1] there",
        "storage.deep.y: true here, 1 there",
    ]


def test_recipe_holds_json_only() -> None:
    with pytest.raises(TypeError, match=r"corpus\.where is a PosixPath; a recipe holds JSON values only"):
        Recipe(corpus={"where": Path("x")}, projection={}, teacher={}, storage={})
    with pytest.raises(ValueError, match="not JSON compliant"):
        Recipe(corpus={"x": float("nan")}, projection={}, teacher={}, storage={})


def test_unknown_version_is_refused() -> None:
    value = make_recipe(CONFIG).to_json() | {"format_version": 2}
    with pytest.raises(UnsupportedVersion, match="format_version is 2; this program reads version 1"):
        Recipe.from_json(value)
    with pytest.raises(ManifestError, match="expected objects corpus, projection, teacher, storage"):
        Recipe.from_json({"format_version": 1, "corpus": {}})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"level": 99}, "expected level in 1..19, found 99"),
        ({"format": "hdf5"}, "expected format to be one of zarr, webdataset, found 'hdf5'"),
        ({"extra": 1}, "expected keys"),
        ({"shapes_per_shard": "64"}, "expected shapes_per_shard to be an integer in 1..65536, found '64'"),
    ],
)
def test_unknown_storage_is_refused(change: dict[str, object], said: str) -> None:
    recipe = make_recipe(CONFIG)
    odd = dataclasses.replace(recipe, storage={**recipe.storage, **change})
    with pytest.raises(CacheError, match=said):
        Description.decode(Description(recipe=odd, schema=SMALL_SCHEMA, label_names=()).encoded, "recipe.json")


def test_config_reports_every_fault() -> None:
    assert list(CacheConfig().problems()) == []
    bad = CacheConfig(root="", name="a/b", format="hdf5", shapes_per_shard=0, depth="int4", level=23)  # type: ignore[arg-type]
    assert list(bad.problems()) == [
        'root = "" is empty; name the directory that holds caches',
        'name = "a/b" must be one folder name, without slashes',
        'format = "hdf5" is not one of zarr, webdataset',
        'depth = "int4" is not one of uint8, float16, none',
        "shapes_per_shard = 0 is not in 1..65536",
        "level = 23 is not in 1..19",
    ]


def test_storage_comes_back_as_config() -> None:
    for config in (CacheConfig(level=7), CacheConfig(format="webdataset", compression="none", features="float32")):
        assert CacheConfig.from_storage(config.storage()) == config


def test_directory_is_named_by_name_and_hash() -> None:
    recipe = make_recipe(CONFIG)
    assert cache_directory(CONFIG, recipe, "synthetic:?n=1") == Path("caches") / f"synthetic-n-1-{recipe.hash[:12]}"
    named = CacheConfig(root="/r", name="mine")
    assert cache_directory(named, recipe, "x") == Path("/r") / f"mine-{recipe.hash[:12]}"
