"""Whatever bytes a cache holds, reading gives equal data or an error of this package; verify finds any flipped bit."""

import hashlib
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import teacher_cache
from teacher_cache.config import CacheConfig
from teacher_cache.documents import canonical, encode_document
from teacher_cache.errors import CacheError, ManifestError, SchemaError, ShardDamaged, UnsupportedVersion
from teacher_cache.format import paths, tar_shards
from teacher_cache.format.codecs import crc32c
from teacher_cache.testing import assert_same_record, build, make_record, tree

COUNT = 3
CONFIGS = {
    f"{format}-{compression}": CacheConfig(format=format, compression=compression, shapes_per_shard=2)  # type: ignore[arg-type]
    for format in ("zarr", "webdataset")
    for compression in ("zstd", "none")
}


@pytest.fixture(scope="module", params=sorted(CONFIGS))
def sound(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CacheConfig]:
    config = CONFIGS[request.param]
    path = tmp_path_factory.mktemp("sound") / "c"
    build(path, config, count=COUNT)
    return path, config


def read_everything(path: Path, config: CacheConfig) -> None:
    """Whatever is read must be right; only CacheError may come out."""
    for allow_incomplete in (False, True):
        try:
            cache = teacher_cache.open(path, allow_incomplete=allow_incomplete, threads=1)
            records = list(cache)
            ids, labels, info = cache.ids, cache.labels, cache.info()
        except CacheError:
            continue
        assert len(records) == COUNT
        for i, record in enumerate(records):
            assert_same_record(record, make_record(i), config)
        assert ids == [make_record(i).id for i in range(COUNT)]
        assert labels.tolist() == [make_record(i).label for i in range(COUNT)]
        assert info.label_names == ("a", "b", "c", "d", "e")


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_is_found_and_nothing_else_escapes(sound: tuple[Path, CacheConfig], data: st.DataObject) -> None:
    path, config = sound
    name = data.draw(st.sampled_from(sorted(tree(path))))
    original = (path / name).read_bytes()
    damaged = data.draw(damage(original))
    (path / name).write_bytes(damaged)
    try:
        read_everything(path, config)
        assert bool(teacher_cache.verify(path, threads=1)) == (damaged != original)
    finally:
        (path / name).write_bytes(original)


def damage(original: bytes) -> st.SearchStrategy[bytes]:
    """One flipped bit, some changed bytes, a cut, an insertion, a copy of another part."""
    places = st.integers(0, max(len(original) - 1, 0))

    def flip(place: int, bit: int) -> bytes:
        changed = bytearray(original)
        changed[place] ^= 1 << bit
        return bytes(changed)

    def splice(place: int, skipped: int, piece: bytes) -> bytes:
        return original[:place] + piece + original[place + skipped :]

    return st.one_of(
        st.builds(flip, places, st.integers(0, 7)),
        st.builds(splice, places, st.integers(0, 40), st.binary(max_size=40)),
        st.builds(lambda place: original[:place], places),
        st.builds(lambda a, b: original[a:] + original[:b], places, places),
    )


def test_every_single_bit_of_the_documents(sound: tuple[Path, CacheConfig]) -> None:
    """Not sampled: one flipped bit in every byte of the manifest, a receipt and the recipe."""
    path, config = sound
    for name in ("manifest.json", "receipts/000001.json", "recipe.json"):
        original = (path / name).read_bytes()
        for place in range(0, len(original), 11):
            changed = bytearray(original)
            changed[place] ^= 1 << (place // 11 % 8)
            (path / name).write_bytes(changed)
            read_everything(path, config)
            assert [problem.file for problem in teacher_cache.verify(path, threads=1)][:1] == [name]
        (path / name).write_bytes(original)


def test_bits_all_over_the_shards(sound: tuple[Path, CacheConfig]) -> None:
    """Not sampled: a flipped bit in every 41st byte of every shard file is refused, or lies where no value does."""
    path, config = sound
    for shard in (0, 1):
        for name in paths.shard_paths(config, shard):
            original = (path / name).read_bytes()
            refused = 0
            places = range(shard, len(original), 41)
            for place in places:
                changed = bytearray(original)
                changed[place] ^= 1 << (place // 41 % 8)
                (path / name).write_bytes(changed)
                try:
                    for i, record in enumerate(teacher_cache.open(path, threads=1)):
                        assert_same_record(record, make_record(i), config)
                except ShardDamaged as error:
                    refused += error.file == name
            (path / name).write_bytes(original)
            if config.format == "zarr" and not name.startswith("valid"):  # the reader counts records, it needs no mask
                assert refused == len(places), name
            elif config.format == "webdataset":
                assert refused > len(places) * 0.7, "what is not refused is padding"


def test_every_bit_of_a_tar_records_json(tmp_path: Path) -> None:
    config = CacheConfig(format="webdataset", compression="none", shapes_per_shard=2)
    build(tmp_path / "c", config, count=2)
    path = tmp_path / "c" / paths.shard_paths(config, 0)[0]
    original = path.read_bytes()
    for place in range(512, 512 + int(original[124:135], 8)):
        changed = bytearray(original)
        changed[place] ^= 1 << (place % 8)
        path.write_bytes(changed)
        with pytest.raises(ShardDamaged, match="its JSON"):
            teacher_cache.open(tmp_path / "c").read([0])


def test_a_receipt_sealed_again_is_not_the_manifests(cache: Path) -> None:
    path = cache / "receipts" / "000000.json"
    document = json.loads(path.read_text())
    del document["sha256"]
    document["records"][0]["label"] = 4
    path.write_bytes(encode_document(document))
    with pytest.raises(ShardDamaged, match=r"receipts/000000\.json: its SHA-256 differs from the one in the manifest"):
        _ = teacher_cache.open(cache).labels
    assert [problem.file for problem in teacher_cache.verify(cache)] == ["receipts/000000.json"]


def forge(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest and write it with its new checksum, as an attacker would."""
    document = json.loads((path / "manifest.json").read_text())
    del document["sha256"]
    change(document)
    (path / "manifest.json").write_bytes(encode_document(document))


def rehash(document: dict[str, Any]) -> None:
    document["recipe_hash"] = hashlib.sha256(canonical(document["recipe"])).hexdigest()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    build(tmp_path / "c", CacheConfig(shapes_per_shard=2), count=COUNT)
    return tmp_path / "c"


def test_unknown_versions_are_refused(cache: Path) -> None:
    def change(document: dict[str, Any]) -> None:
        document["recipe"]["format_version"] = 99
        rehash(document)

    forge(cache, change)
    with pytest.raises(UnsupportedVersion, match=r"format_version is 99; this program reads version 1"):
        teacher_cache.open(cache)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (lambda d: d["schema"].update(channels=10**9), ManifestError, "expected channels in 1..1048576"),
        (lambda d: d["schema"].update(views=4096, image_side=32768), SchemaError, "an array of a record has"),
        (lambda d: d["schema"].update(points="40"), ManifestError, "expected points to be an integer"),
        (lambda d: d.update(shards=[[]]), ManifestError, r"shards\[0\]: expected an object, found list"),
        (lambda d: d["shards"].reverse(), ManifestError, "ascending order"),
        (lambda d: d["shards"][0].update(records=10**12), ManifestError, "expected records in 0..2"),
        (lambda d: d["shards"][0].update(records=True), ManifestError, "expected records to be an integer"),
        (lambda d: d["shards"][0].update(receipt="../../x"), ManifestError, "SHA-256 in hexadecimal"),
        (lambda d: d.update(records=17), ManifestError, "records differs from the sum over the shards, 3"),
        (lambda d: d.update(complete=False), ManifestError, "complete contradicts planned"),
        (lambda d: d.update(recipe_hash="0" * 64), ManifestError, "recipe_hash does not match the recipe"),
        (lambda d: d.update(label_names=[1]), ManifestError, "label_names to be a list of strings"),
        (lambda d: d.pop("schema"), ManifestError, "expected schema to be an object, found nothing"),
    ],
)
def test_forged_manifests(cache: Path, change: Callable[[Any], None], error: type[CacheError], said: str) -> None:
    forge(cache, change)
    with pytest.raises(error, match=said):
        teacher_cache.open(cache)


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 200_000, b'{"sha256": 1e999}', b'{"a": ' + b"9" * 6000 + b"}"],
    ids=["empty", "cut", "list", "null", "no-utf8", "deep", "infinite", "long-number"],
)
def test_manifests_that_are_no_documents(cache: Path, data: bytes) -> None:
    (cache / "manifest.json").write_bytes(data)
    with pytest.raises(ManifestError, match=r"manifest\.json"):
        teacher_cache.open(cache)


def test_larger_schema_than_the_shards_hold_reads_nothing(cache: Path) -> None:
    """A manifest that asks for more than is stored gets an error, not another record's bytes."""
    forge(cache, lambda document: document["schema"].update(channels=60))
    with pytest.raises(ShardDamaged, match=r"features/c\.0\.0\.0\.0, record 0 .*expected a zstd frame of 1440 bytes"):
        teacher_cache.open(cache).read([0])


def test_receipts_name_no_files_outside(cache: Path) -> None:
    """The paths of a receipt are compared with the format's, never followed."""
    path = cache / "receipts" / "000000.json"
    document = json.loads(path.read_text())
    del document["sha256"]
    document["files"][0]["path"] = "../../etc/passwd"
    path.write_bytes(encode_document(document))
    (cache / "manifest.json").unlink()
    assert len(teacher_cache.open(cache, allow_incomplete=True)) == 1, "the forged shard counts as not built"


def tar_of(path: Path, change: Callable[[bytearray], None]) -> Path:
    config = CacheConfig(format="webdataset", compression="none", shapes_per_shard=2)
    build(path, config, count=2)
    file = path / paths.shard_paths(config, 0)[0]
    data = bytearray(file.read_bytes())
    change(data)
    file.write_bytes(data)
    return path


def rename(data: bytearray, name: str) -> None:
    size = int(bytes(data[124:135]), 8)
    data[:512] = tar_shards.tar_header(name, size)


@pytest.mark.parametrize("name", ["/etc/passwd", "../../x.json", "000000-00001.json", "000000-00000.pyd"])
def test_tar_members_with_other_names(tmp_path: Path, name: str) -> None:
    path = tar_of(tmp_path / "c", lambda data: rename(data, name))
    with pytest.raises(ShardDamaged, match=r"expected the tar header of 000000-00000\.json at byte 0, found another"):
        teacher_cache.open(path).read([0])


def test_tar_links_and_huge_sizes(tmp_path: Path) -> None:
    def link(data: bytearray) -> None:
        data[156:157] = b"2"

    def huge(data: bytearray) -> None:
        data[:512] = tar_shards.tar_header("000000-00000.json", 8**11 - 1)

    with pytest.raises(ShardDamaged, match="expected the tar header of"):
        teacher_cache.open(tar_of(tmp_path / "link", link)).read([0])
    with pytest.raises(ShardDamaged, match=r"has 8589934591 bytes; expected at most"):
        teacher_cache.open(tar_of(tmp_path / "huge", huge)).read([0])


@pytest.mark.parametrize(
    "text",
    [
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999, 3), }",
        b"{'descr': '|O', 'fortran_order': False, 'shape': (40, 3), }",
        b"__import__('os').system('true')",
    ],
)
def test_absurd_npy_headers(tmp_path: Path, text: bytes) -> None:
    """With every checksum made right again, a header that claims another array is still refused."""

    def change(data: bytearray) -> None:
        start = 0
        size = int(bytes(data[124:135]), 8)
        member = start + 512 + size + -size % 512
        points = int(bytes(data[member + 124 : member + 135]), 8)
        payload = member + 512
        header = data[payload + 10 : payload + 128].split(b"\n")[0]
        data[payload + 10 : payload + 10 + len(header)] = text.ljust(len(header))[: len(header)]
        document = json.loads(bytes(data[512 : 512 + size]))
        document.pop("self")
        document["crc32c"]["points.npy"] = crc32c(bytes(data[payload : payload + points]))
        sealed = canonical(document | {"self": crc32c(canonical(document))})
        room = size + -size % 512
        assert len(sealed) <= room
        data[:512] = tar_shards.tar_header("000000-00000.json", len(sealed))
        data[512 : 512 + room] = sealed.ljust(room, b"\0")

    path = tar_of(tmp_path / "c", change)
    with pytest.raises(ShardDamaged, match=r"points\.npy is not an NPY file of \[40, 3\] float32"):
        teacher_cache.open(path).read([0])


@pytest.mark.parametrize(
    ("offset", "size", "said"),
    [
        (2**63, 100, "the file ends at"),
        (0, 2**62, "can compress to"),
        (2**64 - 1, 2**64 - 1, "marks this record as missing"),
        (0, 2, "expected a checksum, found 2 bytes"),
        (0, 60, "do not match their CRC-32C"),
    ],
)
def test_zarr_index_that_lies(cache: Path, offset: int, size: int, said: str) -> None:
    path = cache / "features" / "c.0.0.0.0"
    data = bytearray(path.read_bytes())
    index = bytearray(data[-36:-4])
    index[:16] = struct.pack("<2Q", offset, size)
    path.write_bytes(bytes(data[:-36]) + bytes(index) + struct.pack("<I", crc32c(bytes(index))))
    with pytest.raises(ShardDamaged, match=said) as caught:
        teacher_cache.open(cache).read([0])
    assert (caught.value.shard, caught.value.file, caught.value.record) == (0, "features/c.0.0.0.0", 0)
    np.testing.assert_array_equal(
        teacher_cache.open(cache).read([1]).features[0], make_record(1).features.astype(np.float16)
    )


def test_damage_message_in_full(cache: Path) -> None:
    """Expected, found, where, what to do."""
    path = cache / "saliency" / "c.1.0.0"
    data = bytearray(path.read_bytes())
    data[5] ^= 32
    path.write_bytes(data)
    with pytest.raises(ShardDamaged) as caught:
        teacher_cache.open(cache).read([2])
    assert str(caught.value) == (
        "shard 1, saliency/c.1.0.0, record 0 of the shard: its bytes do not match their CRC-32C.\n"
        "  Copy this file again from where the cache came from, or run `i2p cache repair` on the cache, which "
        "rebuilds this shard and no other."
    )


def test_no_cache_here(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"expected a cache \(manifest\.json\), found none"):
        teacher_cache.open(tmp_path)
    with pytest.raises(ManifestError, match="expected a cache"):
        teacher_cache.open(tmp_path / "nowhere", allow_incomplete=True)
    assert [str(problem) for problem in teacher_cache.verify(tmp_path)] == [
        "manifest.json: expected a manifest, found none"
    ]


def test_arguments(cache: Path) -> None:
    opened = teacher_cache.open(cache)
    with pytest.raises(IndexError, match="record 3 does not exist; the number of records is 3"):
        opened.read([0, 3])
    with pytest.raises(IndexError, match="record -4 does not exist; the number of records is 3"):
        _ = opened[-4]
    with pytest.raises(TypeError, match="expected a list of integers"):
        opened.read([0.5])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="threads = 0"):
        teacher_cache.open(cache, threads=0)


def test_lost_receipt_is_damage_where_it_is_needed(cache: Path) -> None:
    (cache / "receipts" / "000001.json").unlink()
    opened = teacher_cache.open(cache)
    assert len(opened.read(range(3))) == 3
    with pytest.raises(ShardDamaged, match=r"receipts/000001\.json: expected a receipt here, found none"):
        _ = opened.labels


def test_another_folder_is_not_taken_over(tmp_path: Path) -> None:
    from teacher_cache.testing import SMALL_SCHEMA, make_recipe

    (tmp_path / "thesis.tex").write_text("...")
    config = CacheConfig()
    with pytest.raises(CacheError, match="expected an empty folder or a cache"):
        teacher_cache.create_cache(tmp_path, make_recipe(config), SMALL_SCHEMA, config)
    shutil.rmtree(tmp_path)


def test_labels_may_be_added_never_changed(cache: Path) -> None:
    from teacher_cache.testing import SMALL_SCHEMA, make_recipe

    config = CacheConfig(shapes_per_shard=2)

    def reopen(*names: str) -> tuple[str, ...]:
        writer = teacher_cache.create_cache(cache, make_recipe(config), SMALL_SCHEMA, config, label_names=names)
        writer.finish(planned=COUNT)
        return teacher_cache.open(cache).label_names

    assert reopen("a", "b", "c", "d", "e", "f") == ("a", "b", "c", "d", "e", "f")
    assert reopen("a", "b") == ("a", "b", "c", "d", "e", "f")
    with pytest.raises(teacher_cache.RecipeMismatch, match="label_names"):
        reopen("a", "x")
