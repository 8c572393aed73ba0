"""A model's folder as hubs host them: model.safetensors, config.json and a card, which every reader here takes too."""

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path

from safetensors.torch import save

from trainer.checkpoints.files import (
    CONFIG,
    MODEL,
    Header,
    find_checkpoint,
    read_header,
    read_tensors,
    sealed_header,
    write_folder,
)
from trainer.errors import CheckpointError

__all__ = ["write_hub_folder"]

CARD = "README.md"


def write_hub_folder(path: str | Path, out: Path) -> tuple[Path, Header]:
    """Write the weights of a checkpoint, or of the newest one of a run, as a folder for a hub.

    out  the folder to write; must not exist.

    `load_encoder(out)`, `load_model` and `load_fine_tuned` read it, and so does every command that takes a checkpoint.
    Raises CheckpointError for a checkpoint that is missing, damaged or within an epoch, and where `out` exists.
    """
    found = find_checkpoint(path)
    header = read_header(found)
    if header.under_way is not None:
        raise CheckpointError(f"{found} was written within an epoch; expected one of a whole epoch.")
    if out.exists():
        raise CheckpointError(f"{out} exists already; expected to write it now.")
    weights = save(read_tensors(found, header), metadata={"format": "pt"})  # which hubs ask for
    files = {MODEL: {"bytes": len(weights), "sha256": hashlib.sha256(weights).hexdigest()}}
    written = replace(header, files=files, loss_scale=None)
    config = {
        "model_type": "i2p-mae",
        "architecture": header.config["model"].get("architecture", "hierarchical"),
        "checkpoint": sealed_header(asdict(written)),
    }
    blobs = {
        MODEL: weights,
        CONFIG: (json.dumps(config, indent=1, sort_keys=True, allow_nan=False) + "\n").encode(),
        CARD: _card(header).encode(),
    }
    write_folder(out, blobs)
    return out, header


def _card(header: Header) -> str:
    load = "load_encoder" if header.kind == "pretraining" else "load_fine_tuned"
    use = (
        'encoder = load_encoder("PATH")\nfeatures = encoder.encode(points)  # [B, N, 3] float32 -> [B, D]'
        if header.kind == "pretraining"
        else 'model, header = load_fine_tuned("PATH")'
    )
    return (
        "---\nlibrary_name: i2p-pretrain\ntags: [point-cloud, i2p-mae]\n---\n\n"
        f"A point-cloud model ({header.kind}, {header.epoch} epochs) of i2p-pretrain.\n`config.json` holds its "
        "settings, `model.safetensors` its weights.\n\n"
        f"```python\nfrom trainer.checkpoints.models import {load}\n\n{use}\n```\n"
    )
