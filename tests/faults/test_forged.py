"""Caches whose checksums are all right and whose contents are not: only this package's errors may come out.

Byte-level damage, which checksums stop, is in test_damage.py and tests/cache/test_safety.py. Here documents, tar
members and zarr chunks get new checksums, so that the checks behind are reached. A longer run:
FUZZ_EXAMPLES=3000 python -m pytest tests/faults/test_forged.py --timeout 0
"""

import json
import os
import struct
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import teacher_cache
from teacher_cache.config import CacheConfig
from teacher_cache.errors import ManifestError, ShardDamaged
from teacher_cache.format import paths
from teacher_cache.format.codecs import pack
from teacher_cache.testing import tree
from tests.support.forge import (
    forge,
    frames,
    json_with_one_odd_value,
    odd_headers,
    settle,
    tar_bytes,
    tar_members,
    zarr_chunks,
    zarr_file,
)
from tests.support.victims import GOOD, R, Victim, read_all, try_everything

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "30"))  # of each test and cache
fuzz = settings(deadline=None, max_examples=EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture])


@fuzz
@given(data=st.data())
def test_documents_with_one_odd_value_sealed_again(victim: Victim, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["manifest.json", "recipe.json", "receipts/000000.json", "receipts/000001.json"]))
    document = json.loads(victim.files[name])
    del document["sha256"]
    odd = data.draw(json_with_one_odd_value(document))
    try:
        forge(victim.path / name, lambda found: (found.clear(), found.update(odd if isinstance(odd, dict) else {})))
        if data.draw(st.booleans()):
            settle(victim.path)
        try_everything(victim.path, victim.config)
    finally:
        victim.restore()


@fuzz
@given(data=st.data())
def test_tar_shards_with_one_odd_part(victim: Victim, data: st.DataObject) -> None:
    if victim.config.format != "webdataset":
        return
    name = paths.shard_paths(victim.config, 0)[0]
    members = tar_members(victim.files[name])
    at = data.draw(st.integers(0, len(members) - 1))
    member, content = members[at]
    headers: dict[int, bytes] = {}
    match data.draw(st.sampled_from(["header", "content", "content", "content", "gone", "twice", "moved", "renamed"])):
        case "header":
            headers[at] = data.draw(odd_headers(member, len(content)))
        case "content" if member.endswith(".json"):
            members[at] = member, json.dumps(data.draw(json_with_one_odd_value(json.loads(content)))).encode()
        case "content":
            members[at] = member, data.draw(odd_arrays(victim.config, content))
        case "gone":
            del members[at]
        case "twice":
            members.insert(at, members[at])
        case "moved":
            members.append(members.pop(at))
        case "renamed":
            members[at] = data.draw(st.sampled_from(["/x", "../x", "000000-00009.json", member.upper()])), content
    shard = tar_bytes(members, headers) + data.draw(st.sampled_from([b""] * 6 + [bytes(512), bytes(10240)]))
    try:
        (victim.path / name).write_bytes(shard)
        settle(victim.path)
        refused = try_everything(victim.path, victim.config)
        assert refused or shard_means_the_same(shard, victim.files[name]), "another archive was read"
    finally:
        victim.restore()


def shard_means_the_same(shard: bytes, sound: bytes) -> bool:
    """Whether headers and the number of members are a builder's: what differs is inside a member."""
    try:
        names = [name for name, _ in tar_members(shard)]
    except (ValueError, IndexError):
        return False
    return names == [name for name, _ in tar_members(sound)] and len(shard) % 512 == 0


@st.composite
def odd_arrays(draw: st.DrawFn, config: CacheConfig, stored: bytes) -> bytes:
    """In the place of a tar's array: an npy file with one odd thing, or another zstd frame around a sound one."""
    from numcodecs.zstd import decompress

    raw = bytes(decompress(stored)) if config.compression == "zstd" else stored
    if config.compression == "zstd" and draw(st.booleans()):
        return draw(frames(raw))
    start = 10 + struct.unpack_from("<H", raw, 8)[0]
    header, body = raw[10:start], raw[start:]
    match draw(st.integers(0, 3)):
        case 0:
            text = draw(
                st.sampled_from(
                    [
                        b"{'descr': '|O', 'fortran_order': False, 'shape': (3, 4, 6), }",
                        b"{'descr': '<f2', 'fortran_order': True, 'shape': (3, 4, 6), }",
                        b"{'descr': '<f2', 'fortran_order': False, 'shape': (9223372036854775807, 4), }",
                        b"{'descr': '<f2', 'fortran_order': False, 'shape': (-3, 4), }",
                        b"__import__('os').abort()",
                        b"(" * 100,
                    ]
                )
            )
            raw = raw[:10] + text.ljust(len(header) - 1)[: len(header) - 1] + b"\n" + body
        case 1:
            raw = b"\x93NUMPY" + draw(st.sampled_from([b"\x02\0", b"\xff\xff"])) + raw[8:]
        case 2:
            raw = raw[:8] + struct.pack("<H", draw(st.integers(0, 65535))) + raw[10:]
        case 3:
            fill = draw(st.sampled_from([b"\xff", b"\x7f", b"\x80", b"\0"]))
            raw = raw[:start] + fill * draw(st.sampled_from([len(body), len(body) - 1, len(body) + 1, 0]))
    return pack(raw, config)


@fuzz
@given(data=st.data())
def test_zarr_shards_with_one_odd_part(victim: Victim, data: st.DataObject) -> None:
    if victim.config.format != "zarr":
        return
    name = data.draw(st.sampled_from(paths.shard_paths(victim.config, 0)))
    try:
        (victim.path / name).write_bytes(data.draw(odd_zarr_files(victim.config, name, victim.files[name])))
        settle(victim.path)
        try_everything(victim.path, victim.config)
    finally:
        victim.restore()


@st.composite
def odd_zarr_files(draw: st.DrawFn, config: CacheConfig, name: str, sound: bytes) -> bytes:
    """In the place of a zarr shard's file: odd chunks, odd places of chunks, with every checksum right."""
    from numcodecs.zstd import decompress

    def unpacked(chunk: bytes) -> bytes:
        return bytes(decompress(chunk)) if config.compression == "zstd" else chunk

    def odd(chunk: bytes) -> bytes:
        raw = unpacked(chunk)
        if config.compression == "zstd" and draw(st.booleans()):
            return draw(frames(raw))
        fill = draw(st.sampled_from([b"\xff", b"\x7f", b"\x80", b"\0"]))
        return pack(fill * draw(st.sampled_from([len(raw), len(raw) - 1, len(raw) + 1, 1])), config)

    if name.split("/")[0] in ("points", "features", "scale", "saliency", "depth"):
        chunks = zarr_chunks(sound, R)
        if draw(st.booleans()):
            size = st.sampled_from([0, 1, 3, 4, 5, 60, len(sound), 2**31, 2**32, 2**62, 2**63, 2**64 - 2, 2**64 - 1])
            return zarr_file(chunks, R, draw(st.lists(size, min_size=2 * R, max_size=2 * R)))
        return zarr_file([odd(chunks[0]), *chunks[1:]], R)
    raw = unpacked(sound[:-4])
    if name.startswith("id/") and draw(st.booleans()):
        count = draw(st.sampled_from([0, 1, R, R + 1, 2**32 - 1]))
        sizes = draw(st.lists(st.sampled_from([0, 1, 2, 6, 8, 4096, 2**31, 2**32 - 1]), max_size=3))
        text = draw(st.sampled_from([b"ab", b"\xff\xfe", b"\xed\xa0\x80", b""]))
        raw = struct.pack("<I", count) + b"".join(struct.pack("<I", size) + text for size in sizes)
        chunk = pack(raw, config)
    else:
        chunk = odd(sound[:-4])
    return zarr_file([chunk], 0, [])[: len(chunk) + 4]


@pytest.mark.parametrize("name", ["manifest.json", "receipts/000000.json"])
@pytest.mark.parametrize(
    "line",
    [
        b' "records": NaN,\n',
        b' "records": Infinity,\n',
        b' "x": ' + b"9" * 5000 + b",\n",
        b' "shard": 7,\n',
        b' "records": [],\n',
    ],
)
def test_words_that_json_has_not_and_keys_that_come_twice(victim: Victim, name: str, line: bytes) -> None:
    """Refused, or read as what the document now holds; and `verify` names the document in any case."""
    data = victim.files[name]
    try:
        for changed in (data.replace(b"{\n", b"{\n" + line, 1), data.replace(b"\n}\n", b",\n" + line[:-2] + b"\n}\n")):
            (victim.path / name).write_bytes(changed)
            assert [problem.file for problem in teacher_cache.verify(victim.path, threads=1)] == [name]
            try_everything(victim.path, victim.config)
    finally:
        victim.restore()


def test_a_receipt_of_more_records_than_a_shard_has(victim: Victim) -> None:
    """Without a manifest the receipt alone says how many records there are."""

    def more(document: dict[str, Any]) -> None:
        document["records"] = [{"id": f"x{i}", "label": 0} for i in range(R + 1)]

    try:
        (victim.path / "manifest.json").unlink()
        forge(victim.path / "receipts" / "000000.json", more)
        left = teacher_cache.open(victim.path, allow_incomplete=True)
        assert len(left) == GOOD - R, "that shard counts as not built"
    finally:
        victim.restore()


def test_a_receipt_that_disagrees_with_the_manifest(victim: Victim) -> None:
    def fewer(document: dict[str, Any]) -> None:
        document["quarantined"] = []

    try:
        forge(victim.path / "receipts" / "000001.json", fewer)
        settle(victim.path)
        with pytest.raises(ManifestError, match=r"1 records, 0 quarantined, \d+ bytes; the manifest says 1, 1 and"):
            _ = teacher_cache.open(victim.path).ids
        assert "receipts/000001.json" in {problem.file for problem in teacher_cache.verify(victim.path)}
    finally:
        victim.restore()


def test_seals_of_the_forger_are_right(victim: Victim) -> None:
    """What is forged gets past the checksums: a cache that is settled without a change is the same cache."""
    settle(victim.path)
    assert tree(victim.path) == victim.files
    name = paths.shard_paths(victim.config, 0)[0]
    if victim.config.format == "webdataset":
        assert tar_bytes(tar_members(victim.files[name])) == victim.files[name]
    else:
        assert zarr_file(zarr_chunks(victim.files[name], R), R) == victim.files[name]
    forge(victim.path / "receipts/000000.json", lambda document: document["records"][0].update(label=4))
    settle(victim.path)
    assert teacher_cache.verify(victim.path) == []
    assert teacher_cache.open(victim.path).labels.tolist()[0] == 4
    victim.restore()
    assert len(teacher_cache.open(victim.path)) == GOOD


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (struct.pack("<II", R, 4) + b"abcd", "unpack_from requires"),
        (struct.pack("<III", R, 0, 9) + b"ab", "an id is cut short"),
        (struct.pack("<II", R, 2**32 - 1) + b"abcd", "an id is cut short"),
        (struct.pack("<III", R, 0, 2) + b"\xff\xfe", "can't decode byte"),
        (struct.pack("<III", R + 1, 0, 0), "expected 2 ids"),
        (struct.pack("<I", R), "expected at least 12 bytes uncompressed, its header declares 4"),
    ],
)
def test_zarr_ids_that_lie(victim: Victim, raw: bytes, said: str) -> None:
    if victim.config.format != "zarr":
        return
    try:
        (victim.path / "id/c.0").write_bytes(zarr_file([pack(raw, victim.config)], 0, [])[:-4])
        settle(victim.path)
        assert teacher_cache.verify(victim.path) == [], "every checksum is right"
        with pytest.raises(ShardDamaged, match=rf"shard 0, id/c\.0: .*{said}"):
            read_all(victim.path)
    finally:
        victim.restore()
