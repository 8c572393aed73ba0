"""Nothing in a file is run, and whatever is wrong with one, only our own error comes out and nothing is written."""

import io
import os
import pickle
import zipfile
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.convert import entries_of, tiny_clip, write_file
from tests.support.models import TINY, tiny_model
from trainer.checkpoints.reference.convert import import_reference
from trainer.checkpoints.reference.pth_file import read_reference, read_teacher
from trainer.errors import CheckpointError

STATED = {"model": {"groups": TINY.groups, "neighbours": TINY.neighbours, "heads": TINY.heads}}


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_would_run_something_is_refused_by_what_it_names(zipped, tmp_path):
    content = {"base_model": entries_of(tiny_model()), "metrics": Touch(tmp_path / "touched")}
    torch.save(content, tmp_path / "file.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"file.pth needs posix.mkdir to be read; expected tensors, dictionaries"):
        import_reference(tmp_path / "file.pth", tmp_path / "out", settings=STATED)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.pth"]


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_a_bare_pickle_and_a_program_are_refused(tmp_path):
    path = tmp_path / "file.pth"
    path.write_bytes(pickle.dumps({"base_model": Touch(tmp_path / "touched")}, protocol=2))
    with pytest.raises(CheckpointError, match=r"file.pth (needs posix.mkdir|is not a valid PyTorch file)"):
        read_reference(path)
    assert not (tmp_path / "touched").exists()
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))
    with pytest.raises(CheckpointError, match=r"file.pth is a TorchScript archive, which is a program; expected"):
        read_reference(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_numpys_numbers_are_read_without_numpy(zipped, tmp_path):
    metrics = {"acc": np.float64(0.1), "half": np.float16(1.5), "big": np.int64(-(2**40)), "yes": np.bool_(True)}
    metrics |= {"swapped": np.array([2.5], ">f4")[0], "tensor": torch.tensor(3.0), "text": "best", "none": None}
    torch.save({"base_model": entries_of(tiny_model()), "epoch": np.int64(7), "metrics": metrics},
               tmp_path / "file.pth", _use_new_zipfile_serialization=zipped)  # fmt: skip
    numbers = read_reference(tmp_path / "file.pth").numbers
    expected = {"acc": 0.1, "half": 1.5, "big": -(2**40), "yes": True, "swapped": 2.5, "tensor": 3.0, "text": "best"}
    assert numbers == {"epoch": 7, "metrics": {**expected, "none": None}}
    assert {name: type(value) for name, value in numbers["metrics"].items() if name in ("acc", "big", "yes")} == {
        "acc": float, "big": int, "yes": bool
    }  # fmt: skip


@pytest.mark.parametrize("value", [np.zeros(2), np.array([object()])[0], np.datetime64("2020-01-01")])
def test_other_things_of_numpys_are_refused(value, tmp_path):
    torch.save({"base_model": entries_of(tiny_model()), "epoch": value}, tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match=r"file.pth needs \S+ to be read"):
        read_reference(tmp_path / "file.pth")


def test_what_is_no_plain_number_beside_the_weights_is_left_out_and_said_so(tmp_path):
    circle: dict[str, Any] = {}
    circle["self"] = circle
    others = {"metrics": {"acc": float("nan")}, "circle": circle, "state": {"x": torch.zeros(2)}}
    path = write_file(tmp_path / "file.pth", entries_of(tiny_model()), **others)
    converted = import_reference(path, tmp_path / "out", settings=STATED)
    assert converted.header.origin is not None
    assert converted.header.origin["numbers"] == {"epoch": 4, "best_metrics": {"acc": 0.75}}
    left_out = [note.split()[2] for note in converted.notes if note.startswith("left out")]
    assert left_out == ["metrics,", "circle,", "state,"]


@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")
def test_absent_empty_cut_and_other_files_are_described(tmp_path):
    path = tmp_path / "file.pth"
    with pytest.raises(CheckpointError, match="is not a file; expected a checkpoint of the reference"):
        read_reference(path)
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="is empty; download it again"):
        read_reference(path)
    write_file(path, entries_of(tiny_model()))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(
        CheckpointError, match=r"is truncated: a zip archive without its directory at the end\. Download it"
    ):
        read_reference(path)
    for content, text in (
        ([1, 2], "contains a list; expected a dictionary"),
        ({"epoch": 3}, "a state dict of names and tensors, found other types at epoch"),
        ({"base_model": {}}, "a state dict of names and tensors, found an empty one"),
        ({"base_model": {3: torch.zeros(1)}}, "found other types at 3"),
        ({"base_model": {"a": torch.zeros(2).to_sparse()}}, "not dense CPU tensors: a"),
    ):
        torch.save(content, path)
        with pytest.raises(CheckpointError, match=text):
            read_reference(path)


def test_a_zip_that_points_to_another_disk_is_damaged(sound):
    path, blob = sound
    damaged = path.with_name("disks.pth")
    at = blob.index(b"PK\x06\x07") + 16  # the number of disks, in the locator of the directory
    damaged.write_bytes(blob[:at] + b"\x02" + blob[at + 1 :])
    with pytest.raises(CheckpointError, match=r"disks\.pth is not a valid PyTorch file"):
        read_reference(damaged)


def test_a_tensor_larger_than_its_file_is_refused(tmp_path):
    entries = entries_of(tiny_model())
    entries["module.mask_token"] = torch.zeros(1).expand(2**20, 2**20)
    path = write_file(tmp_path / "file.pth", entries)
    with pytest.raises(CheckpointError, match=r"describes tensors of \d{13} bytes but holds \d+"):
        import_reference(path, tmp_path / "out", settings=STATED)


def test_numbers_in_names_do_not_make_a_model_of_that_size(tmp_path):
    entries = entries_of(tiny_model())
    entries["module.h_encoder.encoder_blocks.999999999.blocks.999999999.norm1.bias"] = torch.zeros(1)
    with pytest.raises(CheckpointError, match=r"settings of the model do not fit its weights"):
        import_reference(write_file(tmp_path / "file.pth", entries), tmp_path / "out", settings=STATED)


def test_an_attribute_named_as_a_method_misleads_nobody(tmp_path):
    entries = OrderedDict(entries_of(tiny_model()))
    entries.itemx = "not a method"  # type: ignore[attr-defined]
    path = tmp_path / "file.pth"
    torch.save({"base_model": entries}, path, _use_new_zipfile_serialization=False)  # no checksum over what is changed
    path.write_bytes(path.read_bytes().replace(b"itemx", b"items"))
    assert len(read_reference(path).entries) == len(tiny_model().state_dict())


def test_the_teachers_file_is_read_as_carefully(tmp_path):
    path = tmp_path / "clip.pt"
    torch.save({**tiny_clip(6), "input_resolution": 224, "context_length": 77, "vocab_size": 49408}, path)
    assert set(read_teacher(path)) == set(tiny_clip(6))
    torch.save({"base_model": {f"module.clip_model.{name}": value for name, value in tiny_clip(6).items()}}, path)
    assert set(read_teacher(path)) == set(tiny_clip(6))
    torch.save({**tiny_clip(6), "visual.proj": Touch(tmp_path / "touched")}, path)
    with pytest.raises(CheckpointError, match=r"clip.pt needs posix.mkdir to be read"):
        read_teacher(path)
    torch.save({"visual.conv1.weight": torch.zeros(1)}, path)
    with pytest.raises(
        CheckpointError, match=r"holds no CLIP model: visual.proj, text_projection not among its 1 tensors"
    ):
        read_teacher(path)
    path = path.with_suffix(".safetensors")
    path.write_bytes(b"\x10")
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        read_teacher(path)


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> tuple[Path, bytes]:
    path = write_file(tmp_path_factory.mktemp("fuzz") / "file.pth", {"module.mask_token": torch.zeros(1, 24)})
    return path, path.read_bytes()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_of_a_damaged_file_only_our_error_comes_out(sound, data):
    path, blob = sound
    with zipfile.ZipFile(io.BytesIO(blob)) as archive:
        names = archive.namelist()
        pickled = archive.read(next(name for name in names if name.endswith("data.pkl")))
    start = blob.index(pickled)
    damaged = bytearray(blob)
    # half of the damage in the pickle itself, where the instructions are
    low, high = data.draw(st.sampled_from([(0, len(blob)), (start, start + len(pickled))]))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(low, high - 1))] = data.draw(st.integers(0, 255))
    path.with_name("damaged.pth").write_bytes(damaged)
    with suppress(CheckpointError):
        read_reference(path.with_name("damaged.pth"))
