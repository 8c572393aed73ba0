"""Every codec's stated error, and refusal of bytes that lie."""

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numcodecs.zstd import compress

from teacher_cache.config import CacheConfig
from teacher_cache.format import tar_shards, zarr_shards
from teacher_cache.format.codecs import (
    BadBytes,
    crc32c,
    decode_depth,
    decode_features,
    decompress_into,
    encode_record,
    largest_compressed,
    pack,
    quantise,
    unpacked_size,
)
from teacher_cache.format.records import CacheSchema, RecordBatch, TeacherRecord
from teacher_cache.testing.made_up import DEPTH_ERROR, assert_same_record, build, make_recipe, make_record
from teacher_cache.writer import create_cache, write_shard

ZSTD, PLAIN = CacheConfig(), CacheConfig(compression="none")
SCHEMA = CacheSchema(points=3, views=2, image_side=4, patch_side=2, channels=2)


def floats(shape: tuple[int, ...], width: int, low: float, high: float) -> st.SearchStrategy[np.ndarray]:
    values = st.floats(low, high, width=width)  # type: ignore[arg-type]
    return hnp.arrays(np.dtype(f"f{width // 8}"), shape, elements=values)


@st.composite
def records(draw: st.DrawFn) -> TeacherRecord:
    shapes = SCHEMA.shapes
    big = float(np.finfo(np.float32).max)
    text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20)
    return TeacherRecord(
        id=draw(text),
        label=draw(st.integers(-1, 2**31 - 1)),
        points=draw(floats(shapes["points"], 32, -big, big)),
        lo=draw(floats(shapes["lo"], 32, -big, big)),
        cell=draw(floats(shapes["cell"], 32, 0, big)),
        offset=draw(hnp.arrays(np.int32, shapes["offset"])),
        depth=draw(floats(shapes["depth"], 32, 0, 1)),
        features=draw(floats(shapes["features"], 16, -65504, 65504)),
        saliency=draw(floats(shapes["saliency"], 32, -big, big)),
    )


@pytest.mark.parametrize("format", ["zarr", "webdataset"])
@given(
    record=records(),
    features=st.sampled_from(["float16", "float32", "int8"]),
    steps=st.integers(7, 127),
    depth=st.sampled_from(["uint8", "float16"]),
)
@settings(deadline=None, max_examples=25)
def test_read_of_write_is_the_record(
    tmp_path_factory: pytest.TempPathFactory, format: str, record: TeacherRecord, features: str, steps: int, depth: str
) -> None:
    import teacher_cache

    steps = steps if features == "int8" else 127
    config = CacheConfig(format=format, shapes_per_shard=2, features=features, steps=steps, depth=depth)  # type: ignore[arg-type]
    path = tmp_path_factory.mktemp("law") / "c"
    writer = create_cache(path, make_recipe(config), SCHEMA, config)
    write_shard(writer.handle, 0, [record])
    writer.finish()
    assert_same_record(teacher_cache.open(path)[0], record, config)
    assert teacher_cache.open(path).ids == [record.id]


@pytest.mark.parametrize("kind", ["uint8", "float16"])
def test_depth_error_is_as_stated_and_attained(kind: str) -> None:
    config = CacheConfig(depth=kind)  # type: ignore[arg-type]
    values = np.linspace(0, 1, 300_001, dtype=np.float32)
    record = make_record(0)
    stored = encode_record(TeacherRecord(**{**vars(record), "depth": values}), config)["depth"]
    back = np.empty_like(values)
    decode_depth(stored, back)
    error = np.abs(back - values).max()
    assert error <= DEPTH_ERROR[kind]
    assert error > 0.98 * DEPTH_ERROR[kind]
    assert back[values == 0.5].tolist() == [0.5]
    assert (back[0], back[-1]) == (0, 1)


@given(st.binary(min_size=1, max_size=70_000))
@settings(deadline=None, max_examples=40)
def test_pack_and_unpack(data: bytes) -> None:
    for config in (ZSTD, PLAIN):
        packed = np.frombuffer(pack(data, config), np.uint8)
        assert packed.size <= largest_compressed(len(data))
        assert unpacked_size(packed, config, 70_000) == len(data)
        out = np.empty(len(data), np.uint8)
        decompress_into(packed, out, config)
        assert out.tobytes() == data


def test_frames_around_the_sizes_where_headers_change() -> None:
    for size in (1, 255, 256, 257, 65535, 65536, 65791, 65792, 65793, 200_000):
        packed = np.frombuffer(pack(bytes(size), ZSTD), np.uint8)
        assert unpacked_size(packed, ZSTD, size) == size


def test_bomb_is_refused_by_its_header() -> None:
    bomb = np.frombuffer(compress(bytes(50_000_000), 19, False), np.uint8)
    assert bomb.size < 10_000
    out = np.zeros(100, np.uint8)
    with pytest.raises(BadBytes, match="expected a zstd frame of 100 bytes, found one that declares 50000000"):
        decompress_into(bomb, out, ZSTD)
    with pytest.raises(BadBytes, match="expected at most 4096 bytes uncompressed, its header declares 50000000"):
        unpacked_size(bomb, ZSTD, 4096)


def test_frame_that_lies_about_its_size() -> None:
    """A header that claims less, or two frames in a row, must not write past the row or pass."""
    frame = bytearray(compress(bytes(range(200)), 3, False))
    assert frame[5] == 200
    frame[5] = 100
    out = np.zeros(100, np.uint8)
    with pytest.raises(BadBytes, match="zstd cannot decode it"):
        decompress_into(np.frombuffer(bytes(frame), np.uint8), out, ZSTD)
    double = compress(bytes(range(100)), 3, False) * 2
    with pytest.raises(BadBytes, match="zstd cannot decode it"):
        decompress_into(np.frombuffer(double, np.uint8), np.zeros(100, np.uint8), ZSTD)


@pytest.mark.parametrize("data", [b"", b"\x28\xb5\x2f\xfd", b"\x28\xb5\x2f\xfd\xc0\x00", b"no zstd frame here"])
def test_what_is_no_frame(data: bytes) -> None:
    with pytest.raises(BadBytes):
        decompress_into(np.frombuffer(data, np.uint8), np.zeros(10, np.uint8), ZSTD)


def test_crc32c_check_value() -> None:
    assert crc32c(b"123456789") == 0xE3069283  # the check value of CRC-32C, RFC 3720 B.4 polynomial
    assert crc32c(np.frombuffer(b"123456789", np.uint8)) == 0xE3069283


def test_npy_header_is_what_numpy_reads() -> None:
    import io

    for shape, dtype in (((3,), "<f4"), ((2, 3, 4), "<f2"), ((1, 1), "|u1")):
        array = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
        header = tar_shards.npy_header(shape, array.dtype)
        assert len(header) % 64 == 0
        back = np.load(io.BytesIO(header + array.tobytes()), allow_pickle=False)
        np.testing.assert_array_equal(back, array)


def test_shard_index_literal() -> None:
    index = zarr_shards._index([b"abc", b"de"], 3)
    assert index[:48] == struct.pack("<6Q", 0, 3, 3, 2, 2**64 - 1, 2**64 - 1)
    assert index[48:] == struct.pack("<I", crc32c(index[:48]))


def test_impossible_schemas() -> None:
    with pytest.raises(ValueError, match="image_side = 230 is not a multiple of patch_side = 16"):
        CacheSchema(points=1, views=3, image_side=230, patch_side=16, channels=4)
    with pytest.raises(ValueError, match="channels = 0 is not an integer in 1"):
        CacheSchema(points=1, views=3, image_side=32, patch_side=16, channels=0)
    with pytest.raises(ValueError, match=r"schema: an array of a record has \d+ values; expected at most"):
        CacheSchema(points=1, views=4096, image_side=32768, patch_side=16, channels=4)


def test_batch_rows_are_views() -> None:
    batch = RecordBatch.empty(2, SCHEMA, "float16", depth=False)
    assert batch.record(1).features.base is batch.features
    assert batch.record(1).depth is None


def test_cache_of_one_record_a_shard(tmp_path: object) -> None:
    import teacher_cache

    config = CacheConfig(shapes_per_shard=1)
    build(f"{tmp_path}/c", config, count=3)
    assert teacher_cache.open(f"{tmp_path}/c").counts.tolist() == [1, 1, 1]


def test_codes_that_were_never_written_are_damage() -> None:
    codes, scale = quantise(make_record(0).features, 28)
    out = np.empty(codes.shape, np.float16)
    decode_features(codes, scale, out, 28)
    assert np.abs(codes).max(axis=-1).min() == 28  # every token's largest number takes the last step
    for code in (-128, 29, -29):
        odd = codes.copy()
        odd[0, 0, 0] = code
        with pytest.raises(BadBytes, match=r"codes outside -28\.\.28"):
            decode_features(odd, scale, out, 28)
    for value in (np.nan, np.inf, -1.0, 65520 / 28):
        with pytest.raises(BadBytes, match="a scale of its int8 features"):
            decode_features(codes, np.full_like(scale, value), out, 28)


scales = st.one_of(st.just(0.0), st.floats(2.0**-14, 515.5, width=32), st.floats(2.0**-30, 2.0**-13, width=32))


@given(st.lists(scales, min_size=1, max_size=12), st.integers(1, 40), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=200)
def test_int8_features_come_back_to_the_bit_as_numpy_would_have_them(
    of_tokens: list[float], channels: int, seed: int
) -> None:
    """The fast way, which scales below the normal float16 numbers do not take, against one plain product."""
    scale = np.array(of_tokens, np.float32)[None]
    codes = np.random.default_rng(seed).integers(-127, 128, (1, len(of_tokens), channels)).astype(np.int8)
    out = np.empty(codes.shape, np.float16)
    decode_features(codes, scale, out, 127)
    plain = (codes.astype(np.float32) * scale[..., None]).astype(np.float16)
    np.testing.assert_array_equal(out.view(np.uint16), plain.view(np.uint16))


def test_every_code_and_block_of_int8_features_to_the_bit() -> None:
    rng = np.random.default_rng(3)
    codes = np.resize(np.arange(-127, 128).astype(np.int8), (3, 199, 300))  # five blocks and a rest
    scale = np.exp2(rng.uniform(-14, 9, (3, 199))).astype(np.float32)
    scale[0, :7] = [2.0**-14, 515.9, 1, 0, 1 + 2.0**-11, 1 + 3 * 2.0**-11, 2049 / 127]  # 515.9 x 127 rounds to 65504
    out = np.empty(codes.shape, np.float16)
    decode_features(codes, scale, out, 127)
    plain = (codes.astype(np.float32) * scale[..., None]).astype(np.float16)
    assert np.isfinite(plain).all()
    np.testing.assert_array_equal(out.view(np.uint16), plain.view(np.uint16))
