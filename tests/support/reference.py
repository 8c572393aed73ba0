"""Where the recorded reference arrays are.

They lie beside the clone (``../shared/reference``) or where ``I2P_REFERENCE`` says. A clone without them skips tests
that read them, with the reason; in CI their absence is a failure.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

_ROOT = Path(__file__).resolve().parents[2]


def shared_dir(name: str) -> Path:
    """The folder ``../shared/<name>``; skips the calling test (fails it in CI) when it is absent."""
    variable = {
        "reference": "I2P_REFERENCE", "reference_plain": "I2P_REFERENCE_PLAIN", "data": "I2P_REAL_DATA",
        "teachers": "I2P_TEACHERS",
    }[name]  # fmt: skip
    folder = Path(os.environ.get(variable, _ROOT.parent / "shared" / name))
    if not folder.is_dir():
        message = f"no {name} arrays at {folder}; set {variable}"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return folder


def reference_arrays(name: str) -> dict[str, np.ndarray]:
    """All arrays of ``<reference>/<name>.npz``."""
    with np.load(shared_dir("reference") / f"{name}.npz", allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def reference_json(name: str) -> Any:
    """The parsed ``<reference>/<name>.json``."""
    return json.loads((shared_dir("reference") / f"{name}.json").read_text())
