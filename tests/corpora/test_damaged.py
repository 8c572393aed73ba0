"""Whatever happens to the bytes of a file, reading it gives a valid shape or a ShapeError: cut it, flip any bits."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.corpora import CorpusError, ShapeError, check_shape, open_corpus
from pipeline.corpora.files import READERS, read_geometry
from pipeline.corpora.formats.geometry import sample_geometry
from tests.corpora.test_readers import MESHES, cloud_file
from tests.support.corpora import ball, write_npz
from tests.support.reference import shared_dir

SMALL = settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
CLOUDS = ["a.npy", "a.npz", "a.xyz", "a.pts", "a.txt", "a.ply", "ascii.pcd", "binary.pcd"]


def damage(data: bytes, draw: st.DataObject) -> bytes:
    """Cut, flip, or replace some bytes."""
    changed = bytearray(data)
    for _ in range(draw.draw(st.integers(0, 4), label="flips")):
        changed[draw.draw(st.integers(0, len(changed) - 1), label="where")] ^= 1 << draw.draw(
            st.integers(0, 7), label="bit"
        )
    if draw.draw(st.booleans(), label="overwrite"):
        at = draw.draw(st.integers(0, len(changed) - 1), label="at")
        changed[at : at + 4] = draw.draw(
            st.sampled_from([b"\xff\xff\xff\x7f", b"\0\0\0\0", b"9999", b"nan ", b"-1 \n"]), label="with"
        )
    if draw.draw(st.booleans(), label="cut"):
        del changed[draw.draw(st.integers(0, len(changed)), label="length") :]
    return bytes(changed)


def read(path: Path) -> None:
    """Read one file as a corpus would; only ShapeError may come out."""
    try:
        points, _ = sample_geometry(read_geometry(path), count=64, seed=0, id="x", source=str(path), repeat=True)
    except ShapeError as refused:
        _blames(refused, path)
        return
    assert points.shape == (64, 3)
    assert points.dtype == np.float32
    check_shape(points, "sound")


def _blames(error: Exception, path: Path) -> None:
    """The message starts with the file and goes on."""
    assert str(error).startswith(str(path))
    assert len(str(error)) > len(str(path)) + 10


@pytest.mark.parametrize("name", MESHES)
@SMALL
@given(data=st.data())
def test_damaged_meshes(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(damage(MESHES[name][0], data))
    read(path)


@pytest.mark.parametrize("name", CLOUDS)
@SMALL
@given(data=st.data())
def test_damaged_clouds(tmp_path, name, data):
    path = tmp_path / name
    cloud_file(path, ball(80))
    path.write_bytes(damage(path.read_bytes(), data))
    read(path)


@pytest.mark.parametrize("suffix", sorted(READERS))
@SMALL
@given(noise=st.binary(max_size=300))
def test_noise_under_every_extension(tmp_path, suffix, noise):
    path = tmp_path / f"noise{suffix}"
    path.write_bytes(noise)
    read(path)


REAL = [
    "modelnet40_off/bathtub/train/bathtub_0002.off",
    "modelnet40_off/chair/train/chair_0002.off",
    "obj/classic/woody.obj",
    "pcd/lidar_wall_4.pcd",
    "ply/pointr_input.ply",
    "stl/avion_fixed.stl",
]


@pytest.mark.parametrize("name", REAL)
def test_damaged_files_that_nobody_here_wrote(tmp_path, name):
    whole = (shared_dir("data") / "formats" / name).read_bytes()
    path = tmp_path / Path(name).name

    @settings(SMALL, max_examples=40)
    @given(data=st.data())
    def check(data):
        path.write_bytes(damage(whole, data))
        read(path)

    check()


@SMALL
@given(data=st.data())
def test_damaged_npz_corpora(tmp_path, data):
    """A damaged container is a CorpusError when it is opened, or a ShapeError when a shape is read."""
    path = write_npz(tmp_path / "set.npz")
    path.write_bytes(damage(path.read_bytes(), data))
    try:
        corpus = open_corpus(f"npz:{path}", points=64)
    except CorpusError as refused:
        _blames(refused, path)
        return
    for i in range(len(corpus)):
        try:
            assert corpus[i].points.shape == (64, 3)
        except ShapeError as refused:
            _blames(refused, path)


def test_a_truncated_hdf5_is_named(tmp_path):
    source = shared_dir("data") / "formats" / "modelnet40_ply_hdf5_2048"
    for name in ("train_files.txt", "shape_names.txt"):
        (tmp_path / name).write_bytes((source / name).read_bytes())
    whole = (source / "our_data.h5").read_bytes()
    for length in (0, 100, 3000, len(whole) // 2, len(whole) - 1):
        (tmp_path / "our_data.h5").write_bytes(whole[:length])
        with pytest.raises(CorpusError, match=r"our_data\.h5: cannot be read as HDF5: .*Is the download complete\?"):
            open_corpus(f"modelnet40:{tmp_path}", points=64)
