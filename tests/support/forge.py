"""Caches made to deceive: every checksum is right, and what it covers is not what a builder writes.

`settle` computes the checksums of receipts and manifest anew from the bottom up, so that a reader gets past them to the
checks behind. The rest makes parts: tar archives and zstd frames that lie in one place, and JSON with one odd value.
"""

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
from hypothesis import strategies as st

from teacher_cache.documents import canonical, encode_document
from teacher_cache.format import tar_shards

__all__ = [
    "forge",
    "frames",
    "json_with_one_odd_value",
    "odd_headers",
    "settle",
    "tar_bytes",
    "tar_members",
    "zarr_chunks",
    "zarr_file",
]

Document = dict[str, Any]


def forge(path: Path, change: Callable[[Document], Any]) -> None:
    """Change a document and renew its checksum, and the hash of a recipe in it unless that was changed."""
    document = json.loads(path.read_bytes())
    del document["sha256"]
    before = document.get("recipe_hash")
    change(document)
    if "recipe" in document and document.get("recipe_hash") == before:
        document["recipe_hash"] = hashlib.sha256(canonical(document["recipe"])).hexdigest()
    path.write_bytes(encode_document(document))


def settle(root: Path) -> None:
    """Make the checksums of receipts and manifest those of what lies there, as far as these still have the form."""
    for path in sorted((root / "receipts").glob("*.json")):
        forge(path, lambda document: _settle_files(root, document))
    if (root / "manifest.json").exists():
        forge(root / "manifest.json", lambda document: _settle_receipts(root, document))


def _settle_files(root: Path, document: Document) -> None:
    for file in _dicts(document.get("files")):
        if isinstance(file.get("path"), str) and "\0" not in file["path"] and (root / file["path"]).is_file():
            data = (root / file["path"]).read_bytes()
            file |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _settle_receipts(root: Path, document: Document) -> None:
    for entry in _dicts(document.get("shards")):
        path = root / "receipts" / f"{entry.get('shard')!s:.20}.json"
        if type(entry.get("shard")) is int and 0 <= entry["shard"] < 10**6:
            path = root / "receipts" / f"{entry['shard']:06d}.json"
        if path.is_file():
            receipt = json.loads(path.read_bytes())
            entry["receipt"] = hashlib.sha256(path.read_bytes()).hexdigest()
            sizes = [file.get("bytes") for file in _dicts(receipt.get("files"))]
            if all(type(size) is int for size in sizes):
                entry["bytes"] = sum(sizes)


def _dicts(value: Any) -> list[Document]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


ODD = (
    None, True, False, -1, 0, 1, 2, 3, 7, 63, 2**31 - 1, 2**31, 2**53, 2**63 - 1, 2**63, 2**64, -(2**63), 10**300,
    0.5, -0.0, 1e308, -1e-320, "", "0", "zarr", "webdataset", "a" * 5000, "\ud800", "\0", "../../x", "/etc/passwd", "é",
    "0" * 64, "f" * 63, [], {}, [[]], [{}], [0] * 9, ["x"] * 3, _nested(60), _nested(400), {"id": "x", "label": 0},
)  # fmt: skip


@st.composite
def json_with_one_odd_value(draw: st.DrawFn, value: Any) -> Any:
    """A copy of a JSON value that differs in one place: another value, one taken away, one added, one doubled."""
    if isinstance(value, dict) and value and draw(st.integers(0, 9)):
        key = draw(st.sampled_from(sorted(value)))
        match draw(st.integers(0, 11)):
            case 0:
                return {name: item for name, item in value.items() if name != key}
            case 1:
                return value | {draw(st.sampled_from(["extra", "", "sha256", "\ud800", "a" * 3000])): 0}
            case _:
                return value | {key: draw(json_with_one_odd_value(value[key]))}
    if isinstance(value, list) and value and draw(st.integers(0, 9)):
        at = draw(st.integers(0, len(value) - 1))
        match draw(st.integers(0, 11)):
            case 0:
                return value[:at] + value[at + 1 :]
            case 1:
                return value[: at + 1] + value[at:]
            case 2:
                return value[::-1]
            case _:
                return [*value[:at], draw(json_with_one_odd_value(value[at])), *value[at + 1 :]]
    return draw(st.sampled_from(ODD) | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text())


# ---------------------------------------------------------------------------------------------------------------- zstd


def frame(
    data: bytes,
    *,
    declared: int | None,
    kind: int = 0,
    regenerated: int | None = None,
    dictionary: bool = False,
    checksum: bool = False,
    reserved: bool = False,
    window: int = 0x70,
) -> bytes:
    """A zstd frame of one block (RFC 8878, 3.1.1).

    declared     content size in the header, as 8 bytes; None declares none
    kind         of the block: 0 raw, 1 one byte repeated `regenerated` times, 2 compressed (which this is not), 3 none
    """
    descriptor = (3 << 6 if declared is not None else 0) | reserved << 3 | checksum << 2 | dictionary
    size = len(data) if regenerated is None else regenerated
    block = ((size << 3) | (kind << 1) | 1).to_bytes(3, "little")
    return b"".join(
        (
            struct.pack("<IBB", 0xFD2FB528, descriptor, window),
            b"\x07" if dictionary else b"",
            b"" if declared is None else struct.pack("<Q", declared),
            block,
            data[:1] if kind == 1 else data,
            bytes(4) if checksum else b"",
        )
    )


def frames(raw: bytes) -> st.SearchStrategy[bytes]:
    """Bytes in the place of a zstd frame of `raw`: sound in another way, or lying in one place."""
    size = len(raw)
    sound = frame(raw, declared=size)
    skippable = struct.pack("<II", 0x184D2A50, 3) + b"abc"
    return st.sampled_from(
        (
            sound,
            sound + sound,
            sound[:-1],
            sound + b"\0",
            skippable + sound,
            sound + skippable,
            skippable,
            struct.pack("<II", 0x184D2A5F, 2**32 - 1),
            frame(raw, declared=None),
            frame(raw, declared=2**63),
            frame(raw, declared=2**64 - 1),
            frame(raw, declared=size - 1),
            frame(raw, declared=size + 1),
            frame(raw[:-1], declared=size),
            frame(raw + b"\0", declared=size),
            frame(raw, declared=0),
            frame(raw, declared=size, window=0xFF),
            frame(raw, declared=size, dictionary=True),
            frame(raw, declared=size, checksum=True),
            frame(raw, declared=size, reserved=True),
            frame(raw, declared=size, kind=2),
            frame(raw, declared=size, kind=3),
            frame(b"\0", declared=size, kind=1, regenerated=size),
            frame(b"\xff", declared=size, kind=1, regenerated=size),
            frame(b"\x7f", declared=size, kind=1, regenerated=2**20),
            frame(b"\0", declared=2**20, kind=1, regenerated=2**20),
            raw,
            b"",
        )
    )


# ----------------------------------------------------------------------------------------------------------------- tar


def tar_members(data: bytes) -> list[tuple[str, bytes]]:
    """Names and contents of the members of a sound shard."""
    found, at = [], 0
    while data[at]:
        name, size = data[at : at + 100].rstrip(b"\0").decode(), int(data[at + 124 : at + 135], 8)
        found.append((name, data[at + 512 : at + 512 + size]))
        at += 512 + size + -size % 512
    return found


def tar_bytes(members: list[tuple[str, bytes]], headers: dict[int, bytes] | None = None) -> bytes:
    """An archive of these members; `headers` replace those of some, by place. JSON gets the checksums of its record.

    A JSON that is no object, or has no ``crc32c`` object, stays as it is.
    """
    contents = dict(members)
    pieces = []
    for place, (name, data) in enumerate(members):
        if name.endswith(".json"):
            data = _record_sealed(data, name.removesuffix("json"), contents)
        header = (headers or {}).get(place, tar_shards.tar_header(name[:99], len(data)))
        pieces += [header, data, bytes(-len(data) % 512)]
    return b"".join((*pieces, tar_shards.END))


def _record_sealed(data: bytes, prefix: str, contents: dict[str, bytes]) -> bytes:
    try:
        document = json.loads(data)
    except ValueError:
        return data
    if not isinstance(document, dict):
        return data
    if isinstance(sums := document.get("crc32c"), dict):
        real = {name.removeprefix(prefix): google_crc32c.value(item) for name, item in contents.items()}
        document["crc32c"] = {key: real.get(key, value) if type(value) is int else value for key, value in sums.items()}
    document.pop("self", None)
    return canonical(document | {"self": google_crc32c.value(canonical(document))})


def odd_headers(name: str, size: int) -> st.SearchStrategy[bytes]:
    """Headers in the place of a member's: other kinds, other names, sizes in other forms, with a right checksum."""

    def header(change: Callable[[bytearray], Any]) -> bytes:
        block = bytearray(tar_shards.tar_header(name, size))
        change(block)
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
        return bytes(block)

    def put(at: int, data: bytes) -> Callable[[bytearray], None]:
        return lambda block: block.__setitem__(slice(at, at + len(data)), data)

    return st.sampled_from(
        (
            *(
                header(put(156, kind))
                for kind in (b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"x", b"g", b"L", b"S", b"\0")
            ),
            *(
                header(put(0, text.ljust(100, b"\0")))
                for text in (b"/etc/passwd", b"../../x", b"a/../../b", b"", b"\xff" * 9)
            ),
            *(
                header(put(124, text))
                for text in (b"77777777777\0", b"-0000000001\0", b"00000000000\0", b"           \0")
            ),
            header(put(124, b"\x80" + (2**62).to_bytes(11, "big"))),
            header(put(124, b"\xff" * 12)),
            header(put(157, b"/etc/passwd")),
            header(put(345, b"..")),
            header(put(257, b"ustar  \0")),
            bytes(512),
            b"\xff" * 512,
        )
    )


# ---------------------------------------------------------------------------------------------------------------- zarr


def zarr_chunks(data: bytes, rows: int) -> list[bytes]:
    """The inner chunks of a sharded array's file, without their checksums; those that are there."""
    index = struct.unpack(f"<{2 * rows}Q", data[-16 * rows - 4 : -4])
    return [data[at : at + size - 4] for at, size in zip(index[::2], index[1::2], strict=True) if at != 2**64 - 1]


def zarr_file(chunks: list[bytes], rows: int, index: list[int] | None = None) -> bytes:
    """A sharded array's file of these chunks, with all checksums right; `index` replaces offsets and sizes."""
    checked = [chunk + struct.pack("<I", google_crc32c.value(chunk)) for chunk in chunks]
    if index is None:
        index, at = [], 0
        for chunk in checked:
            index += [at, len(chunk)]
            at += len(chunk)
        index += [2**64 - 1] * (2 * rows - len(index))
    packed = struct.pack(f"<{len(index)}Q", *index)
    return b"".join((*checked, packed, struct.pack("<I", google_crc32c.value(packed))))
