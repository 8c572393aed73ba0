"""A cache opens in plain zarr and plain webdataset, without warnings, and they see what our reader sees."""

import dataclasses
import io
import warnings
from pathlib import Path

import numpy as np
import pytest
from numcodecs.zstd import decompress

import teacher_cache
from teacher_cache.config import CacheConfig
from teacher_cache.testing import SMALL_SCHEMA, build, make_record

ARRAYS = ("points", "features", "saliency", "lo", "cell", "offset", "label")


@pytest.mark.parametrize("compression", ["zstd", "none"])
@pytest.mark.parametrize("features", ["float16", "float32"])
def test_fast_path_equals_plain_zarr(tmp_path: Path, compression: str, features: str) -> None:
    import zarr

    config = CacheConfig(shapes_per_shard=4, features=features, compression=compression, depth="uint8")  # type: ignore[arg-type]
    build(tmp_path / "c", config, count=10, bad=[1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        group = zarr.open(tmp_path / "c", mode="r")
        arrays = dict(group.arrays())
        valid = arrays["valid"][:]
        ids = arrays["id"][:]
    assert valid.tolist() == [True] * 3 + [False] + [True] * 4 + [True] * 2 + [False] * 2
    assert set(arrays) == {*ARRAYS, "depth", "valid", "id"}
    batch = teacher_cache.open(tmp_path / "c").read(range(9), depth=True)
    assert ids[valid].tolist() == batch.ids
    for name in ARRAYS:
        plain = arrays[name][:][valid]
        assert plain.dtype == getattr(batch, name).dtype, name
        np.testing.assert_array_equal(plain, getattr(batch, name), err_msg=name)
    np.testing.assert_array_equal(arrays["depth"][:][valid].astype(np.float32) / np.float32(254), batch.depth)
    assert not arrays["features"][3].any()  # an unused row is the fill value
    assert arrays["label"][3] == -1


def test_int8_features_are_two_plain_arrays(tmp_path: Path) -> None:
    import webdataset
    import zarr

    config = CacheConfig(shapes_per_shard=4, features="int8")
    build(tmp_path / "z", config, count=3)
    build(tmp_path / "w", dataclasses.replace(config, format="webdataset"), count=3)
    group = zarr.open(tmp_path / "z", mode="r")
    assert (group["features"].dtype, group["scale"].dtype) == ("int8", "float32")
    found = teacher_cache.open(tmp_path / "z").read(range(3)).features
    assert found.dtype == np.float16
    np.testing.assert_array_equal((group["features"][:3] * group["scale"][:3][..., None]).astype(np.float16), found)
    samples = webdataset.WebDataset(str(tmp_path / "w" / "shards" / "000000.tar"), shardshuffle=False)
    for row, sample in enumerate(samples):
        codes, scale = (
            np.load(io.BytesIO(decompress(sample[f"{name}.npy.zst"])), allow_pickle=False)
            for name in ("features", "scale")
        )
        np.testing.assert_array_equal((codes * scale[..., None]).astype(np.float16), found[row])


def test_plain_zarr_checks_our_checksums(tmp_path: Path) -> None:
    """Our CRCs are where the codec specification puts them: plain zarr refuses a flipped bit too."""
    import zarr

    build(tmp_path / "c", CacheConfig(shapes_per_shard=4, compression="none"), count=2)
    path = tmp_path / "c" / "features" / "c.0.0.0.0"
    data = bytearray(path.read_bytes())
    data[11] ^= 1
    path.write_bytes(data)
    group = zarr.open(tmp_path / "c", mode="r")
    with pytest.raises(ValueError, match="checksum"):
        group["features"][0]
    np.testing.assert_array_equal(group["features"][1], make_record(1).features.astype(np.float16))


def test_our_reader_reads_what_plain_zarr_writes(tmp_path: Path) -> None:
    """Shards that zarr itself encodes under our metadata are read the same: the reader follows the specification."""
    import zarr

    config = CacheConfig(shapes_per_shard=4)
    build(tmp_path / "c", config, count=4)
    cache_before = teacher_cache.open(tmp_path / "c").read(range(4), depth=True)
    group = zarr.open(tmp_path / "c", mode="r+")
    for name in (*ARRAYS, "depth", "valid", "id"):
        values = group[name][:]
        for path in (tmp_path / "c" / name).glob("c.*"):
            path.unlink()
        group[name][:] = values
    batch = teacher_cache.open(tmp_path / "c").read(range(4), depth=True)
    for name in (*ARRAYS, "depth"):
        np.testing.assert_array_equal(getattr(batch, name), getattr(cache_before, name), err_msg=name)
    assert batch.ids == cache_before.ids


@pytest.mark.parametrize("compression", ["zstd", "none"])
def test_plain_webdataset_reads_the_tars(tmp_path: Path, compression: str) -> None:
    import webdataset
    from numcodecs.zstd import decompress

    config = CacheConfig(format="webdataset", shapes_per_shard=4, compression=compression)  # type: ignore[arg-type]
    build(tmp_path / "c", config, count=6)
    urls = [str(path) for path in sorted((tmp_path / "c" / "shards").glob("*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    batch = teacher_cache.open(tmp_path / "c").read(range(6), depth=True)
    assert [sample["__key__"] for sample in samples] == [f"{i // 4:06d}-{i % 4:05d}" for i in range(6)]
    assert [sample["json"]["id"] for sample in samples] == batch.ids
    assert [sample["json"]["label"] for sample in samples] == batch.label.tolist()
    for row, sample in enumerate(samples):
        for name in ("lo", "cell", "offset"):
            rows = getattr(batch, name)[row]
            np.testing.assert_array_equal(np.array(sample["json"][name], rows.dtype), rows)
        for name in ("points", "features", "saliency", "depth"):
            if compression == "zstd":
                plain = np.load(io.BytesIO(decompress(sample[f"{name}.npy.zst"])), allow_pickle=False)
            else:
                plain = sample[f"{name}.npy"]
            if name == "depth":
                plain = plain.astype(np.float32) / np.float32(254)
            np.testing.assert_array_equal(plain, getattr(batch, name)[row], err_msg=name)  # type: ignore[index]


def test_plain_tarfile_lists_safe_members(tmp_path: Path) -> None:
    import tarfile

    build(tmp_path / "c", CacheConfig(format="webdataset", shapes_per_shard=4), count=2)
    with tarfile.open(tmp_path / "c" / "shards" / "000000.tar") as archive:
        members = archive.getmembers()
    assert [member.name for member in members[:5]] == [
        f"000000-00000.{name}"
        for name in ("json", "points.npy.zst", "features.npy.zst", "saliency.npy.zst", "depth.npy.zst")
    ]
    assert all((m.isfile(), m.mode, m.uid, m.gid, m.mtime) == (True, 0o644, 0, 0, 0) for m in members)


def test_depth_steps_are_what_the_metadata_says(tmp_path: Path) -> None:
    build(tmp_path / "c", CacheConfig(), count=1)
    depth = teacher_cache.open(tmp_path / "c")[0].depth
    assert depth is not None
    assert depth.shape == SMALL_SCHEMA.shapes["depth"]
    assert (depth == 0.5).any()
