"""Channels of their own: the basis is stored with the cache, checked, and gives the teacher's features back."""

import base64
import dataclasses
import io
import json
import pickle
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import teacher_cache
from teacher_cache import writer as writer_module
from teacher_cache.config import CacheConfig
from teacher_cache.documents import encode_document
from teacher_cache.errors import ManifestError, RecipeMismatch
from teacher_cache.format.basis import Basis
from teacher_cache.storage.local import LocalStorage
from teacher_cache.testing.made_up import SMALL_SCHEMA, build, make_basis, make_recipe, make_record, tree
from teacher_cache.writer import create_cache, stored_basis, write_shard
from tests.support.limits import HANG

CHANNELS = SMALL_SCHEMA.channels
FORMATS = ("zarr", "webdataset")


def config(**settings: object) -> CacheConfig:
    return CacheConfig(**({"shapes_per_shard": 4, "channels": CHANNELS} | settings))  # type: ignore[arg-type]


def created(path: Path, basis: Basis | None, **settings: object) -> teacher_cache.CacheWriter:
    chosen = config(**settings)
    return create_cache(path, make_recipe(chosen), SMALL_SCHEMA, chosen, basis=basis)


def test_restore_is_the_transpose_and_the_mean_by_hand() -> None:
    basis = Basis(
        mean=np.array([1, 2, 3], np.float32),
        components=np.array([[0, 1, 0], [0, 0, -1]], np.float32),
        variance=(3.0, 1.0),
        total_variance=8.0,
        shapes=1,
    )
    assert (basis.channels, basis.teacher_channels, basis.kept) == (2, 3, 0.5)
    assert basis.project(np.array([[7.0, 5.0, 5.0]])).tolist() == [[3.0, -2.0]]
    assert basis.restore(np.array([[3, -2]], np.float16)).tolist() == [[1.0, 5.0, 5.0]]


def test_a_full_basis_loses_nothing_and_a_part_of_it_keeps_distances_within_it() -> None:
    full, part = make_basis(9), make_basis(4)
    rng = np.random.default_rng(0)
    features = rng.normal(size=(2, 3, 5, 9)).astype(np.float32)
    # 1e-6: two products of nine float32 numbers of about 1
    np.testing.assert_allclose(full.restore(full.project(features)), features, atol=3e-6)
    stored = part.project(features)
    once = part.restore(stored)
    np.testing.assert_allclose(part.project(once), stored, atol=3e-6)  # a projection
    a, b = stored[0], stored[1]
    apart = np.linalg.norm(once[0] - once[1], axis=-1)
    np.testing.assert_allclose(np.linalg.norm(a - b, axis=-1), apart, rtol=1e-5)  # so the loss means the same
    assert (np.linalg.norm(features[0] - features[1], axis=-1) > apart).all()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("features", ["float16", "float32", "int8"])
def test_a_cache_gives_its_basis_back_to_the_bit(tmp_path: Path, format: str, features: str) -> None:
    build(tmp_path / "c", config(format=format, features=features), count=7)
    cache = teacher_cache.open(tmp_path / "c")
    basis = make_basis(CHANNELS)
    assert cache.basis == basis
    assert cache.basis is not None
    assert (cache.basis.variance, cache.basis.shapes, cache.basis.kept) == (basis.variance, 5, basis.kept)
    assert cache.schema.channels == CHANNELS
    assert stored_basis(tmp_path / "c") == basis
    assert cache.basis.restore(cache[0].features).shape == (3, 4, 9)
    assert teacher_cache.verify(tmp_path / "c") == []
    assert pickle.loads(pickle.dumps(cache)).basis == basis  # noqa: S301 - our own


def test_a_cache_without_channels_of_its_own_has_no_basis(tmp_path: Path) -> None:
    build(tmp_path / "c", CacheConfig(), count=2)
    assert teacher_cache.open(tmp_path / "c").basis is None
    assert stored_basis(tmp_path / "c") is None
    assert stored_basis(tmp_path / "nothing") is None
    assert not (tmp_path / "c" / "basis.npy").exists()


@pytest.mark.parametrize("format", FORMATS)
def test_plain_numpy_reads_the_basis_that_lies_beside_the_shards(tmp_path: Path, format: str) -> None:
    build(tmp_path / "c", config(format=format, compression="none", features="float32"), count=2)
    rows = np.load(tmp_path / "c" / "basis.npy", allow_pickle=False)
    assert (rows.shape, rows.dtype) == ((1 + CHANNELS, 9), np.dtype("<f4"))
    if format == "zarr":
        import zarr

        features = zarr.open(tmp_path / "c", mode="r")["features"][1]
    else:
        import tarfile

        with tarfile.open(tmp_path / "c" / "shards" / "000000.tar") as archive:
            member = archive.extractfile("000000-00001.features.npy")
            assert member is not None
            features = np.load(io.BytesIO(member.read()), allow_pickle=False)
    restored = features @ rows[1:] + rows[0]
    np.testing.assert_allclose(restored, make_basis(CHANNELS).restore(make_record(1).features), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "another"])
def test_verify_finds_a_damaged_basis_and_finishing_again_writes_it_anew(tmp_path: Path, damage: str) -> None:
    build(tmp_path / "c", config(), count=5)
    before = tree(tmp_path / "c")
    path = tmp_path / "c" / "basis.npy"
    data = path.read_bytes()
    match damage:
        case "flip":
            path.write_bytes(data[:-3] + bytes([data[-3] ^ 4]) + data[-2:])
        case "cut":
            path.write_bytes(data[:-1])
        case "remove":
            path.unlink()
        case "another":
            rows = make_basis(CHANNELS, seed=1).rows
            np.save(path, rows)
    problems = teacher_cache.verify(tmp_path / "c")
    assert [problem.file for problem in problems] == ["basis.npy"]
    assert teacher_cache.open(tmp_path / "c").basis == make_basis(CHANNELS)  # which the reader has from the manifest
    assert teacher_cache.withdraw(tmp_path / "c", problems) == []
    build(tmp_path / "c", config(), count=5)
    assert tree(tmp_path / "c") == before


def test_a_lost_recipe_with_its_basis_comes_back_from_the_manifest(tmp_path: Path) -> None:
    build(tmp_path / "c", config(), count=5)
    before = tree(tmp_path / "c")
    (tmp_path / "c" / "recipe.json").write_bytes(before["recipe.json"].replace(b'"values":"', b'"values":"A', 1))
    with pytest.raises(ManifestError, match=r"recipe\.json: its contents have SHA-256"):
        stored_basis(tmp_path / "c")
    teacher_cache.withdraw(tmp_path / "c", teacher_cache.verify(tmp_path / "c"))
    build(tmp_path / "c", config(), count=5)
    assert tree(tmp_path / "c") == before


def test_going_on_needs_no_basis_and_another_one_is_refused(tmp_path: Path) -> None:
    basis = make_basis(CHANNELS)
    created(tmp_path / "c", basis)
    assert created(tmp_path / "c", None).basis == basis
    assert created(tmp_path / "c", basis).basis == basis
    other = make_basis(CHANNELS, seed=1)
    said = f"basis: {basis.sha256[:12]} of 5 shapes here, {other.sha256[:12]} of 5 shapes there"
    with pytest.raises(RecipeMismatch, match=said):
        created(tmp_path / "c", other)


def test_what_does_not_fit_together_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cache\.channels = \d+ needs a basis"):
        created(tmp_path / "c", None)
    with pytest.raises(ValueError, match="basis has 5 channels; this config stores 6"):
        created(tmp_path / "c", make_basis(5))
    with pytest.raises(ValueError, match=r"schema\.channels is 6; this config stores 5"):
        created(tmp_path / "c", make_basis(5), channels=5)
    plain = CacheConfig()
    with pytest.raises(ValueError, match="basis has 6 channels; this config stores 0"):
        create_cache(tmp_path / "c", make_recipe(plain), SMALL_SCHEMA, plain, basis=make_basis(6))
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("before", ["looking", "writing"])
def test_of_two_builders_that_begin_at_once_the_first_ones_basis_stands(tmp_path: Path, monkeypatch, before) -> None:
    """Each brings a basis of its own, as from corpora of different sizes; neither sees the other before they meet."""
    both, met = threading.Barrier(2), threading.local()

    def meeting(call):
        def wrapped(*given):
            found = call(*given)
            if not hasattr(met, "place"):
                met.place = both.wait(HANG)
            return found

        return wrapped

    if before == "looking":
        monkeypatch.setattr(writer_module, "_stored", meeting(writer_module._stored))
    else:
        monkeypatch.setattr(LocalStorage, "prepare", meeting(LocalStorage.prepare))

    def begin(seed: int) -> Basis | str | None:
        try:
            return created(tmp_path / "c", make_basis(CHANNELS, seed=seed)).basis
        except RecipeMismatch as error:
            return str(error)

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(begin, (1, 2)))
    kept = [result for result in results if isinstance(result, Basis)]
    refused = [result for result in results if isinstance(result, str)]
    assert len(kept) == len(refused) == 1
    assert "basis: " in refused[0]
    monkeypatch.undo()
    assert stored_basis(tmp_path / "c") == kept[0]


def test_files_of_a_builder_that_began_meanwhile_are_no_strangers(tmp_path: Path, monkeypatch) -> None:
    listed, basis = LocalStorage.files, make_basis(CHANNELS)

    def late(self):
        monkeypatch.undo()
        created(tmp_path / "c", basis)
        return listed(self)

    monkeypatch.setattr(LocalStorage, "files", late)
    assert created(tmp_path / "c", basis).basis == basis


def test_what_travels_to_workers_stays_small(tmp_path: Path) -> None:
    chosen = config(channels=256)
    schema = dataclasses.replace(SMALL_SCHEMA, channels=256)
    writer = create_cache(tmp_path / "c", make_recipe(chosen), schema, chosen, basis=make_basis(256, 512))
    assert len(pickle.dumps(writer.handle)) < 5000
    rng = np.random.default_rng(0)
    record = dataclasses.replace(make_record(0), features=rng.normal(size=(3, 4, 256)).astype(np.float32))
    write_shard(pickle.loads(pickle.dumps(writer.handle)), 0, [record])  # noqa: S301 - our own
    writer.finish()
    assert teacher_cache.verify(tmp_path / "c") == []


def edited(path: Path, change) -> None:
    """Rewrite a finished cache's manifest with its basis changed and its own checksum made to fit."""
    document = json.loads((path / "manifest.json").read_text())
    del document["sha256"]
    change(document)
    (path / "manifest.json").write_bytes(encode_document(document))


def values(document: dict, change) -> None:
    rows = np.frombuffer(base64.b64decode(document["basis"]["values"]), "<f4").copy()
    change(rows)
    document["basis"]["values"] = base64.b64encode(rows.tobytes()).decode()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.pop("basis"), "expected basis to be an object, found nothing"),
        (lambda d: d["basis"].update(values="?"), "expected values to be base64"),
        (lambda d: d["basis"].update(values=d["basis"]["values"][:-4]), "expected values to be 252 bytes"),
        (lambda d: d["basis"].update(teacher_channels=1 << 40), "expected teacher_channels in 1..8192"),
        (lambda d: d["basis"].update(teacher_channels=3), "expected values to be 84 bytes"),
        (lambda d: values(d, lambda rows: rows.__setitem__(3, np.nan)), "values that are not finite"),
        (lambda d: values(d, lambda rows: rows.__setitem__(12, 3.0)), "its components are not orthonormal"),
        (lambda d: d["basis"].update(variance=[1, 2]), "expected 6 variances and their total"),
        (lambda d: d["basis"].update(variance=[10**400] * 6), "finite and at least 0"),
        (lambda d: d["basis"].update(variance="much"), "expected variance to be a list of numbers"),
        (lambda d: d["basis"].update(total_variance=-1), "finite and at least 0"),
        (lambda d: d["basis"].update(total_variance=None), "expected total_variance to be a number, found None"),
        (lambda d: d["basis"].update(shapes=0), "expected shapes in 1..1048576, found 0"),
        (lambda d: d["schema"].update(channels=5), "schema.channels is 5, but the recipe stores 6"),
    ],
)
def test_a_basis_that_cannot_be_is_refused_whatever_its_checksum_says(tmp_path: Path, change, said: str) -> None:
    build(tmp_path / "c", config(), count=2)
    edited(tmp_path / "c", change)
    with pytest.raises(ManifestError, match=re.escape(said)):
        teacher_cache.open(tmp_path / "c")


def test_a_basis_that_the_recipe_does_not_ask_for_is_refused(tmp_path: Path) -> None:
    build(tmp_path / "c", CacheConfig(shapes_per_shard=4), count=2)
    edited(tmp_path / "c", lambda document: document.update(basis=make_basis(6).to_json()))
    with pytest.raises(ManifestError, match="contains a basis, but its recipe stores the teacher's own channels"):
        teacher_cache.open(tmp_path / "c")


def test_features_of_other_sizes_are_refused() -> None:
    basis = make_basis(4)
    with pytest.raises(ValueError, match=r"restore: features are \[2, 9\] float32; expected \[\.\.\., 4\]"):
        basis.restore(np.zeros((2, 9), np.float32))
    with pytest.raises(ValueError, match=r"project: features are \[9\] int64; expected \[\.\.\., 9\]"):
        basis.project(np.zeros(9, np.int64))


def test_an_object_store_holds_the_basis_too() -> None:
    build("memory://bases/c", config(), count=5)
    build("memory://bases/c", config(), count=9)
    cache = teacher_cache.open("memory://bases/c")
    assert (cache.basis, len(cache)) == (make_basis(CHANNELS), 9)
    assert teacher_cache.verify("memory://bases/c") == []
    with pytest.raises(RecipeMismatch, match="basis: "):
        created("memory://bases/c", make_basis(CHANNELS, seed=1))  # type: ignore[arg-type]


@pytest.mark.parametrize("format", FORMATS)
def test_converting_carries_the_basis_along(tmp_path: Path, format: str) -> None:
    other = next(name for name in FORMATS if name != format)
    build(tmp_path / "c", config(format=format, features="int8"), count=7)
    made = teacher_cache.convert(tmp_path / "c", tmp_path / "new", format=other, shapes_per_shard=4)
    back = teacher_cache.convert(made.path, tmp_path / "back", format=format)
    assert teacher_cache.open(made.path).basis == make_basis(CHANNELS)
    assert teacher_cache.verify(made.path) == []
    assert tree(back.path) == tree(tmp_path / "c")  # type: ignore[arg-type]


def part_of(path: Path, basis: Basis, indices: range) -> Path:
    writer = created(path, basis)
    write_shard(writer.handle, 0, [make_record(index) for index in indices])
    writer.finish()
    return path


def test_caches_of_one_recipe_merge_where_their_basis_is_one(tmp_path: Path) -> None:
    one, other = make_basis(CHANNELS), make_basis(CHANNELS, seed=1)
    first = part_of(tmp_path / "a", one, range(3))
    same, another = part_of(tmp_path / "b", one, range(3, 5)), part_of(tmp_path / "x", other, range(3, 5))
    merged = teacher_cache.open(teacher_cache.merge([first, same], tmp_path / "merged").path)
    assert (merged.basis, len(merged)) == (one, 5)
    with pytest.raises(RecipeMismatch, match=f"basis: {one.sha256[:12]} of 5 shapes here, {other.sha256[:12]} of 5"):
        teacher_cache.merge([first, another], tmp_path / "never")
    assert not (tmp_path / "never").exists()
