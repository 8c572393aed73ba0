"""A fault of the machine is tried again and then stops the reader; only what is wrong with the file is a ShapeError."""

import contextlib
import errno
import os
import resource
import shutil
import socket
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline.corpora import CorpusError, MachineFault, ShapeError, corpus_fingerprint, faults, open_corpus
from pipeline.corpora.faults import is_machine_fault, patiently, read_file
from tests.support.corpora import ball

MACHINE = [
    errno.ENOENT, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT, errno.EACCES,
    errno.EPERM, errno.ENOMEM, errno.ETIMEDOUT, errno.ECONNRESET, errno.ENOTCONN, errno.EHOSTDOWN, errno.EBUSY,
    errno.EAGAIN, errno.EREMOTEIO, errno.ENODEV,
]  # fmt: skip
DATA = [errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


def clouds(folder: Path, count: int = 3) -> str:
    """A folder of clouds."""
    (folder / "box").mkdir(parents=True)
    for k in range(count):
        np.save(folder / "box" / f"{k}.npy", ball(80, k))
    return f"folder:{folder}"


def failing(monkeypatch, error: BaseException, times: int = 10**6) -> list[int]:
    """Let the first reads of a file fail; -> a list that grows with every attempt."""
    real, attempts = Path.read_bytes, []

    def read(path: Path) -> bytes:
        attempts.append(1)
        if len(attempts) <= times:
            raise error
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", read)
    return attempts


@pytest.mark.parametrize("number", MACHINE, ids=errno.errorcode.get)
def test_an_error_of_the_machine_is_tried_again_and_then_stops(tmp_path, monkeypatch, number):
    corpus = open_corpus(clouds(tmp_path), points=64)
    attempts = failing(monkeypatch, OSError(number, os.strerror(number)))
    with pytest.raises(MachineFault, match=rf"(?s)0\.npy: cannot be read.*{os.strerror(number)} \(E.*not of the shape"):
        corpus[0]
    assert len(attempts) == len(faults.PAUSES) + 1
    with pytest.raises(MachineFault):
        corpus.fingerprint(0)
    with pytest.raises(MachineFault):
        corpus_fingerprint(corpus)


@pytest.mark.parametrize("number", DATA, ids=errno.errorcode.get)
def test_an_error_about_the_file_itself_refuses_it_at_once(tmp_path, monkeypatch, number):
    corpus = open_corpus(clouds(tmp_path), points=64)
    attempts = failing(monkeypatch, OSError(number, os.strerror(number)))
    with pytest.raises(ShapeError, match=os.strerror(number)):
        corpus[0]
    assert len(attempts) == 1


@pytest.mark.parametrize("error", [OSError(errno.EIO, "x"), MemoryError(), TimeoutError(), ConnectionResetError()])
def test_a_fault_that_passes_leaves_the_shape_as_it_is(tmp_path, monkeypatch, error):
    corpus = open_corpus(clouds(tmp_path), points=64)
    whole = corpus[0].points.tobytes()
    attempts = failing(monkeypatch, error, times=2)
    assert corpus[0].points.tobytes() == whole
    assert len(attempts) == 3


def test_an_error_without_a_number_is_a_librarys_and_of_the_data():
    assert not is_machine_fault(OSError("truncated file: eof = 3"))
    assert not is_machine_fault(ValueError("x"))
    assert is_machine_fault(OSError("file read failed: errno = 5, error message = 'Input/output error'"))
    assert is_machine_fault(socket.gaierror(-3, "Temporary failure in name resolution"))


def test_a_fault_wrapped_by_a_reader_is_still_found():
    def read() -> None:
        try:
            raise OSError(errno.EIO, "x")
        except OSError as error:
            raise ShapeError("file", "does not parse") from error

    with pytest.raises(MachineFault, match=r"EIO"):
        patiently(read, "file")


def test_open_files_without_end_stop_the_reader_with_the_remedy(tmp_path):
    corpus = open_corpus(clouds(tmp_path), points=64)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    kept = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 3, hard))
        with contextlib.suppress(OSError):
            while True:
                kept.append(os.open("/dev/null", os.O_RDONLY))
        with pytest.raises(MachineFault, match=r"(?s)EMFILE.*ulimit -n"):
            corpus[0]
    finally:
        for descriptor in kept:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    corpus[0]


def test_a_folder_that_goes_away_stops_the_reader(tmp_path):
    corpus = open_corpus(clouds(tmp_path / "net"), points=64)
    shutil.move(tmp_path / "net", tmp_path / "gone")
    with pytest.raises(MachineFault, match="still mounted"):
        corpus[1]
    shutil.move(tmp_path / "gone", tmp_path / "net")
    corpus[1]


def test_a_gltf_is_not_blamed_for_files_that_went_away_with_it(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    path = tmp_path / "a" / "x.gltf"
    path.write_text('{"asset": {"version": "2.0"}, "buffers": [{"uri": "x.bin", "byteLength": 12}]}')
    corpus = open_corpus(f"folder:{tmp_path}", points=64)
    with pytest.raises(ShapeError):
        corpus[0]
    real = Path.read_bytes

    def read(self: Path) -> bytes:  # the disk goes away right after the first file was read
        data = real(self)
        shutil.rmtree(tmp_path / "a", ignore_errors=True)
        return data

    monkeypatch.setattr(Path, "read_bytes", read)
    with pytest.raises(MachineFault, match=r"x\.gltf"):
        corpus[0]


def test_a_file_closed_by_its_own_mode_is_refused_and_one_that_is_open_is_the_machines(tmp_path, monkeypatch):
    path = tmp_path / "x.npy"
    path.write_bytes(b"x")
    failing(monkeypatch, PermissionError(errno.EACCES, "Permission denied"))
    with pytest.raises(MachineFault, match="EACCES"):
        read_file(path)
    path.chmod(0o200)
    monkeypatch.setattr(os, "access", lambda where, mode: Path(where) != path)  # root may read everything
    with pytest.raises(ShapeError, match=r"its mode is 0200; `chmod u\+r`"):
        read_file(path)
    monkeypatch.setattr(os, "access", lambda where, mode: False)  # nor the folder: a right of the machine was lost
    with pytest.raises(MachineFault, match="EACCES"):
        read_file(path)


def test_what_is_no_regular_file_is_refused_without_opening_it(tmp_path):
    os.mkfifo(tmp_path / "pipe.npy")
    with pytest.raises(ShapeError, match="not a regular file"):
        read_file(tmp_path / "pipe.npy")


def test_a_listed_file_that_is_absent_is_refused_only_while_the_rest_is_there(tmp_path):
    (tmp_path / "ShapeNet-55").mkdir()
    (tmp_path / "shapenet_pc").mkdir()
    (tmp_path / "ShapeNet-55" / "train.txt").write_text("02691156-aa.npy\n02691156-bb.npy\n")
    np.save(tmp_path / "shapenet_pc" / "02691156-aa.npy", ball(80))
    corpus = open_corpus(f"shapenet55:{tmp_path}", points=64)
    with pytest.raises(ShapeError, match=r"bb\.npy: is listed in train\.txt, but does not exist"):
        corpus[1]
    (tmp_path / "shapenet_pc" / "02691156-aa.npy").rename(tmp_path / "aa.npy")  # as a mount point without its disk
    for index in (0, 1):
        with pytest.raises(MachineFault, match="ENOENT"):
            corpus[index]


def hdf5(folder: Path) -> Path:
    path = folder / "ply_data_train0.h5"
    with h5py.File(path, "w") as file:
        file["data"] = np.stack([ball(80, k) for k in range(4)])
        file["label"] = np.zeros((4, 1), np.uint8)
    (folder / "train_files.txt").write_text("x/ply_data_train0.h5\n")
    (folder / "shape_names.txt").write_text("box\n")
    return path


def test_a_truncated_hdf5_file_is_data_and_a_failing_disk_is_not(tmp_path, monkeypatch):
    path = hdf5(tmp_path)
    corpus = open_corpus(f"modelnet40:{tmp_path}", points=64)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ShapeError, match="truncated"):
        corpus[0]
    path.write_bytes(whole)
    corpus = open_corpus(f"modelnet40:{tmp_path}", points=64)  # the file that was opened is written anew by now
    real = h5py.File

    def broken(*args: object) -> None:
        raise OSError("Can't read data (file read failed: time = now, errno = 5, error message = 'Input/output error')")

    monkeypatch.setattr(h5py, "File", broken)
    with pytest.raises(MachineFault, match="EIO"):
        corpus[0]
    with pytest.raises(MachineFault, match="EIO"):
        open_corpus(f"modelnet40:{tmp_path}", points=64)
    monkeypatch.setattr(h5py, "File", real)
    corpus[0]


def test_an_npz_corpus_on_a_failing_disk_is_no_broken_zip(tmp_path, monkeypatch):
    import zipfile

    np.savez(tmp_path / "a.npz", points=np.stack([ball(80)]))

    def broken(*args: object) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(zipfile, "ZipFile", broken)
    with pytest.raises(MachineFault, match="ESTALE"):
        open_corpus(f"npz:{tmp_path / 'a.npz'}", points=64)


def test_a_list_on_a_failing_disk_is_no_broken_download(tmp_path, monkeypatch):
    hdf5(tmp_path)
    failing(monkeypatch, OSError(errno.EIO, "Input/output error"))
    with pytest.raises(CorpusError, match=r"(?s)train_files\.txt.*EIO") as caught:
        open_corpus(f"modelnet40:{tmp_path}", points=64)
    assert isinstance(caught.value, MachineFault)
