"""Copies of the recorded folder with something changed."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.reference import shared_dir

Change = Callable[[dict[str, Any]], None]


def changed_folder(tmp_path: Path, changes: Mapping[str, Change | bytes | None]) -> Path:
    """The recorded folder, its files linked.

    changes  file name -> a function that changes the arrays of an .npz or the object of a .json in place; or the bytes
             of another file in its stead; or None for no such file.
    """
    source, folder = shared_dir("reference"), tmp_path / "reference"
    folder.mkdir()
    for path in source.iterdir():
        if path.name not in changes:
            (folder / path.name).symlink_to(path)
    for name, change in changes.items():
        if isinstance(change, bytes):
            (folder / name).write_bytes(change)
        elif change is not None and name.endswith(".json"):
            values = json.loads((source / name).read_text())
            change(values)
            (folder / name).write_text(json.dumps(values))
        elif change is not None:
            with np.load(source / name, allow_pickle=False) as file:
                arrays = {key: file[key] for key in file.files}
            change(arrays)
            write_arrays(folder / name, arrays)
    return folder


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an .npz."""
    with path.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
