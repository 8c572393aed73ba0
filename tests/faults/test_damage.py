"""Damage of every kind, in every file: `verify` names it, reading raises or gives unharmed data, repair undoes it.

What reading alone does not see is stated here, byte for byte; docs/promises.md says it in words.
"""

import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import teacher_cache
from teacher_cache.config import CacheConfig
from teacher_cache.errors import CacheError
from teacher_cache.format import paths
from teacher_cache.testing import build, tree

COUNT = 5
FLIPS = 150  # in each of four caches
CONFIGS = {
    f"{format}-{features}": CacheConfig(format=format, features=features, shapes_per_shard=2)  # type: ignore[arg-type]
    for format in ("zarr", "webdataset")
    for features in ("float16", "int8")
}


class Sound:
    """A finished cache, and everything that can be read from it."""

    def __init__(self, path: Path, config: CacheConfig) -> None:
        self.path, self.config = path, config
        build(path, config, count=COUNT, bad=[3])
        self.files = tree(path)
        self.read = read_all(path)


@pytest.fixture(scope="module", params=sorted(CONFIGS))
def sound(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Sound:
    return Sound(tmp_path_factory.mktemp("sound") / "c", CONFIGS[request.param])


def read_all(path: Path) -> list[object]:
    """Every value that a cache gives, in comparable form. Raises CacheError."""
    cache = teacher_cache.open(path, threads=1)
    batch = cache.read(range(len(cache)), depth=True)
    arrays = [
        getattr(batch, name).tobytes()
        for name in ("points", "lo", "cell", "offset", "depth", "features", "saliency", "label")
    ]
    return [batch.ids, *arrays, cache.ids, cache.labels.tolist(), cache.info().label_names, cache.counts.tolist()]


def found_by_verify(path: Path) -> list[str]:
    return [problem.file for problem in teacher_cache.verify(path, threads=1)]


def read_right_or_refused(sound: Sound, name: str) -> bool:
    """Whether reading raises an error that names a file; if it does not, it must have given what was written."""
    said = refusal(sound)
    assert said is None or name in said, f"the error names another file than {name}: {said}"
    return said is not None


def refusal(sound: Sound) -> str | None:
    try:
        found = read_all(sound.path)
    except CacheError as error:
        return str(error)
    assert found == sound.read, "harmed data was read without an error"
    return None


def harm(sound: Sound, name: str, data: bytes) -> bool:
    """Put other bytes into a file and look what becomes of it; -> whether reading notices. The file is put back."""
    (sound.path / name).write_bytes(data)
    try:
        assert found_by_verify(sound.path) == [name]
        return read_right_or_refused(sound, name)
    finally:
        (sound.path / name).write_bytes(sound.files[name])


def test_a_random_bit_anywhere(sound: Sound) -> None:
    """Hundreds of flips, each file as often as any other: metadata, manifest, recipe, receipts, every shard file."""
    rng = np.random.default_rng(17)
    names = sorted(sound.files)
    noticed = {name: 0 for name in names}
    for turn in range(FLIPS):
        name = names[turn % len(names)]
        data = bytearray(sound.files[name])
        data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        noticed[name] += harm(sound, name, bytes(data))
    assert noticed["manifest.json"] == sum(name == "manifest.json" for name in (names * FLIPS)[:FLIPS])
    assert found_by_verify(sound.path) == []


def unseen(sound: Sound, name: str, step: int) -> list[int]:
    """Places of a file where a changed byte is not noticed when everything is read, of every step-th place."""
    data = sound.files[name]
    places = []
    for place in range(0, len(data), step):
        changed = bytearray(data)
        changed[place] ^= 0x55
        (sound.path / name).write_bytes(changed)
        places += [] if refusal(sound) else [place]
    (sound.path / name).write_bytes(data)
    return places


def test_what_reading_does_not_see(sound: Sound) -> None:
    """Reading compares all it reads with a checksum. Not read, and so `verify`'s alone: Zarr's metadata, the mask
    `valid`, the recipe beside a manifest, and the zeros that fill up a tar member."""
    for name in sound.files:
        if name.endswith("zarr.json") or name.startswith("valid/") or name == "recipe.json":
            assert len(unseen(sound, name, 97)) == len(range(0, len(sound.files[name]), 97)), name
        elif name.startswith("receipts/") or name == "manifest.json":
            assert unseen(sound, name, 31) == [], name
        elif sound.config.format == "zarr":
            assert unseen(sound, name, 29) == [], name
        else:
            assert set(unseen(sound, name, 37)) == padding(sound.path / name) & set(
                range(0, len(sound.files[name]), 37)
            ), name


def padding(path: Path) -> set[int]:
    """Places of a tar that fill its members up to whole blocks."""
    places: set[int] = set()
    with tarfile.open(path) as archive:
        for member in archive:
            end = member.offset_data + member.size
            places |= set(range(end, end + -end % 512))
    return places


def cut(data: bytes) -> bytes:
    return data[: len(data) * 2 // 3]


@pytest.mark.parametrize("change", [cut, lambda data: data[:-1], lambda data: b"", lambda data: data + data[:512]])
def test_every_file_cut_or_longer(sound: Sound, change: Callable[[bytes], bytes]) -> None:
    for name, data in sound.files.items():
        noticed = harm(sound, name, change(data))
        if name.endswith(".tar"):
            assert noticed


def test_every_file_deleted(sound: Sound) -> None:
    for name, data in sound.files.items():
        (sound.path / name).unlink()
        assert found_by_verify(sound.path) == [name]
        read_right_or_refused(sound, name)
        (sound.path / name).write_bytes(data)


def test_every_file_replaced_by_a_folder(sound: Sound) -> None:
    for name, data in sound.files.items():
        (sound.path / name).unlink()
        (sound.path / name).mkdir()
        assert found_by_verify(sound.path) == [name]
        read_right_or_refused(sound, name)
        (sound.path / name).rmdir()
        (sound.path / name).write_bytes(data)


def shard_files(sound: Sound, shard: int) -> list[str]:
    return [*paths.shard_paths(sound.config, shard), paths.receipt_path(shard)]


def pairs(sound: Sound) -> list[tuple[str, str]]:
    """Files of shards 0 and 1 that correspond, and their receipts."""
    return list(zip(shard_files(sound, 0), shard_files(sound, 1), strict=True))


def test_swapped_and_doubled_files(sound: Sound) -> None:
    for a, b in pairs(sound):
        first, second = sound.files[a], sound.files[b]
        if first == second:
            continue  # `valid` of two full shards
        (sound.path / a).write_bytes(second)
        assert found_by_verify(sound.path) == [a], "doubled"
        (sound.path / b).write_bytes(first)
        assert found_by_verify(sound.path) == sorted([a, b]), "swapped"
        if a.startswith("receipts/") or sound.config.format == "webdataset":
            with pytest.raises(CacheError, match=a):
                read_all(sound.path)
        (sound.path / a).write_bytes(first)
        (sound.path / b).write_bytes(second)
        stranger = a.replace("0", "7", 1) if a.startswith("id/") else f"{a}.copy"
        (sound.path / stranger).write_bytes(first)
        assert found_by_verify(sound.path) == [stranger], "a copy beside it"
        assert read_all(sound.path) == sound.read
        (sound.path / stranger).unlink()


def test_links_are_followed_only_to_regular_files(sound: Sound, tmp_path: Path) -> None:
    """A link to a file is that file; to a device, a pipe or itself it is no file, and nothing waits on it."""
    os.mkfifo(tmp_path / "pipe")
    for name in [*paths.shard_paths(sound.config, 0), paths.receipt_path(0), "manifest.json"]:
        for target in ("/dev/zero", tmp_path / "pipe", sound.path / name):
            (sound.path / name).unlink()
            (sound.path / name).symlink_to(target)
            assert found_by_verify(sound.path) == [name], target
            read_right_or_refused(sound, name)
        (sound.path / name).unlink()
        (tmp_path / "elsewhere").write_bytes(sound.files[name])
        (sound.path / name).symlink_to(tmp_path / "elsewhere")
        assert found_by_verify(sound.path) == []
        assert read_all(sound.path) == sound.read
        (sound.path / name).unlink()
        (sound.path / name).write_bytes(sound.files[name])


def test_repair_restores_every_byte(sound: Sound) -> None:
    """One damaged file of each kind at a time, then several at once: withdrawn, built again, the same bytes."""
    rng = np.random.default_rng(2)
    kinds = {name.split("/")[0]: name for name in sorted(sound.files)}
    assert len(kinds) >= 4
    several = sorted(set(kinds.values()) - {"recipe.json"})  # without recipe and manifest there is nothing to go by
    for names in (*([name] for name in kinds.values()), several):
        for name in names:
            data = bytearray(sound.files[name])
            data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
            (sound.path / name).write_bytes(data[: len(data) - int(rng.integers(2))])
        harmed = [shard for shard in range(3) if {*shard_files(sound, shard)} & {*names}]
        whole = [name for shard in range(3) if shard not in harmed for name in shard_files(sound, shard)]
        rounds = 0
        while problems := teacher_cache.verify(sound.path, threads=1):
            before = {name: (sound.path / name).stat().st_mtime_ns for name in whole}
            withdrawn = teacher_cache.withdraw(sound.path, problems)
            assert withdrawn == sorted({problem.shard for problem in problems if problem.shard is not None})
            build(sound.path, sound.config, count=COUNT, bad=[3])
            after = {name: (sound.path / name).stat().st_mtime_ns for name in before}
            assert after == before, "sound shards are left alone"
            rounds += 1
            assert rounds <= 3
        assert rounds
        assert tree(sound.path) == sound.files


def test_a_cache_that_lost_recipe_and_manifest_says_so_and_is_left_alone(sound: Sound) -> None:
    for name in ("manifest.json", "recipe.json"):
        (sound.path / name).write_bytes(sound.files[name][:-9])
    before = tree(sound.path)
    with pytest.raises(
        CacheError, match=r"both are damaged, so the recipe of this cache is unknown\.\n  Copy one of them"
    ):
        teacher_cache.withdraw(sound.path, teacher_cache.verify(sound.path))
    assert tree(sound.path) == before
    for name in ("manifest.json", "recipe.json"):
        (sound.path / name).write_bytes(sound.files[name])
