"""Encoders by what a command line calls them: a run or checkpoint, or a baseline that has learnt nothing."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import numpy as np
    import torch

    from trainer.downstream.features import Encoder

__all__ = ["BASELINES", "ENCODER_HELP", "is_checkpoint", "named_encoders", "points_needed"]

BASELINES = ("coordinates", "point-nn")
ENCODER_HELP = "a run directory, one of its checkpoints, embedded, coordinates or point-nn"


def named_encoders(
    names: Sequence[str],
    *,
    device: "torch.device",
    feature: Any,
    untrained_on: "np.ndarray | None" = None,
) -> "dict[str, Encoder]":
    """Encoders in the order of their names.

    names         paths of runs and checkpoints (of fine-tuned classifiers too), "embedded", or `BASELINES`.
    feature       of a pre-training model: "levels" or "top".
    untrained_on  clouds [B, N, 3] on which the batch norms of the same model with its first weights settle; it is added
                  as "untrained" behind each pre-training model. None: it is not.

    Raises CheckpointError for paths that are not checkpoints, and UsageError for a name that is neither a path nor a
    baseline.
    """
    from trainer.checkpoints.files import find_checkpoint, read_header
    from trainer.checkpoints.models import load_fine_tuned, load_model
    from trainer.downstream.baselines.coordinates import coordinate_statistics
    from trainer.downstream.baselines.point_nn import PointNN
    from trainer.downstream.features import ClassifierEncoder, model_encoder, settle_batch_norms
    from trainer.models.build import new_student
    from trainer.models.heads.fine_tuned import ShapeClassifier

    found: dict[str, Encoder] = {}
    for name in dict.fromkeys(names):
        if name == "coordinates":
            found[name] = coordinate_statistics
            continue
        if name == "point-nn":
            found[name] = PointNN()
            continue
        if not is_checkpoint(name):
            raise click.UsageError(f"{name} is not an encoder; expected {ENCODER_HELP}")
        if read_header(find_checkpoint(name)).kind != "pretraining":
            tuned, _ = load_fine_tuned(name)
            if not isinstance(tuned, ShapeClassifier):
                raise click.UsageError(f"{name} is a part segmenter, which has no feature of the whole shape")
            found[name] = ClassifierEncoder(tuned.to(device), device)
            continue
        model, header = load_model(name)
        if untrained_on is not None:
            seed = int(header.config.get("trainer", {}).get("seed", 0))  # an imported one does not say
            teacher = {"channels": model.teacher_channels, "views": model.views}
            fresh = new_student(model.config, model.masking, teacher, seed=seed).to(device)
            settle_batch_norms(fresh, untrained_on, device, feature)
            several = sum(name not in BASELINES for name in names) > 1
            found[f"untrained ({name})" if several else "untrained"] = model_encoder(fresh, device, feature)
        found[name] = model_encoder(model.to(device), device, feature)
    return found


def points_needed(names: Sequence[str]) -> int:
    """Points of a cloud that the encoders of these names need at least."""
    from trainer.checkpoints.files import find_checkpoint, read_header
    from trainer.checkpoints.models import section_from_json
    from trainer.models.config import settings_class

    least = 32
    for name in names:
        if name not in BASELINES and is_checkpoint(name):
            settings = read_header(find_checkpoint(name)).config.get("model", {})
            least = max(least, section_from_json(settings_class(settings), settings).least_points)
    return least


def is_checkpoint(name: str) -> bool:
    """Tell whether a name can be a run or checkpoint: a folder, or the word embedded for the package's own."""
    return name == "embedded" or Path(name).is_dir()
