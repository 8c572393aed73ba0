"""What shapes were made from, as receipts hold it: carried along, compared, and believed only where it fits."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

import teacher_cache
from teacher_cache.config import CacheConfig
from teacher_cache.documents import encode_document
from teacher_cache.errors import ManifestError, RecipeMismatch, SchemaError
from teacher_cache.format.manifest import Receipt
from teacher_cache.testing import SMALL_SCHEMA, make_recipe, make_record
from teacher_cache.writer import CacheWriter, create_cache, write_shard

IDS = [make_record(k).id for k in range(4)]


def writer_at(path: Path) -> CacheWriter:
    config = CacheConfig(shapes_per_shard=4)
    return create_cache(path, make_recipe(config), SMALL_SCHEMA, config)


def made(path: Path, content: str) -> Path:
    writer = writer_at(path)
    for shard in (0, 1):
        numbers = range(2 * shard, 2 * shard + 2)
        shapes = [(IDS[k], content * 64) for k in numbers]
        write_shard(writer.handle, shard, [make_record(k) for k in numbers], shapes=shapes)
    writer.finish()
    return path


def test_two_builders_of_different_files_never_take_each_others_shard(tmp_path: Path) -> None:
    cache = made(tmp_path / "c", "a")
    records, before = [make_record(0), make_record(1)], (cache / "receipts" / "000000.json").read_bytes()
    handle = writer_at(cache).handle
    with pytest.raises(RecipeMismatch, match=rf"a builder that read other files: 1 shapes differ, first '{IDS[1]}'"):
        write_shard(handle, 0, records, shapes=[(IDS[0], "a" * 64), (IDS[1], "b" * 64)])
    for shapes in ([], [(IDS[0], "a" * 64)]):  # what is not known is not compared
        assert write_shard(handle, 0, records, shapes=shapes).encoded == before


def test_a_conversion_does_not_go_on_with_shards_of_before_a_change(tmp_path: Path) -> None:
    cache = made(tmp_path / "c", "a")
    first = teacher_cache.convert(cache, tmp_path / "out", format="webdataset")
    (Path(first.path) / "manifest.json").unlink()
    assert teacher_cache.convert(cache, tmp_path / "out", format="webdataset").written == 0
    writer = writer_at(cache)
    changed = [replace(make_record(2), label=1), make_record(3)]
    write_shard(writer.handle, 1, changed, shapes=[(IDS[2], "b" * 64), (IDS[3], "a" * 64)], replace=True)
    writer.finish()
    with pytest.raises(
        RecipeMismatch, match=rf"before the corpus of its sources changed: 1 shapes differ, first '{IDS[2]}'"
    ):
        teacher_cache.convert(cache, tmp_path / "out", format="webdataset")


@pytest.mark.parametrize("shapes", [[(IDS[3], "a" * 64)], [(IDS[0], "a" * 64), (IDS[0], "b" * 64)]])
def test_receipts_that_speak_of_other_shapes_are_damaged(tmp_path: Path, shapes: list[tuple[str, str]]) -> None:
    cache = made(tmp_path / "c", "a")
    path = cache / "receipts" / "000000.json"
    document = json.loads(path.read_bytes())
    files = [file["path"] for file in document["files"]]
    document["shapes"] = [{"id": id, "sha256": digest} for id, digest in shapes]
    content = {key: value for key, value in document.items() if key not in ("format", "version", "sha256")}
    data = encode_document(content)
    with pytest.raises(ManifestError, match="'shapes' lists a shape twice, or one that has no record"):
        Receipt.decode(data, "here", shard=0, paths=files)


def test_shapes_that_are_not_of_the_shard_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match=f"'{IDS[3]}' in `shapes` is neither a record nor quarantined"):
        write_shard(writer_at(tmp_path / "c").handle, 0, [make_record(0)], shapes=[(IDS[3], "a" * 64)])
