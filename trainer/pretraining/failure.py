"""Saving of the batch whose loss was not finite."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from cuda.token_maps import TokenMaps
from teacher_cache.storage.atomic import replace_file
from trainer.engine.run_directory import write_json
from trainer.errors import TrainingError
from trainer.pretraining.data import Part
from trainer.pretraining.step import Outcome

__all__ = ["not_finite", "save_batch"]


def not_finite(
    folder: Path, rank: int, parts: Sequence[Part], outcome: Outcome, facts: Mapping[str, Any]
) -> TrainingError:
    """Save the batch of a step whose loss was not finite; -> the error to raise.

    facts  epoch, counted from 0, step, counted from 1, and learning_rate.
    """
    save_batch(folder, rank, parts, facts)
    ids = [id for part in parts for id in part.ids]
    shown = ", ".join(ids[:4]) + (f" and {len(ids) - 4} more" if len(ids) > 4 else "")
    losses = ", ".join(f"loss_{name} {value}" for name, value in outcome.losses.items())
    return TrainingError(
        f"the loss is not finite in step {facts['step']} (epoch {facts['epoch'] + 1}): {losses}, gradient norm "
        f"{outcome.gradient_norm}, learning rate {facts['learning_rate']:.3g}; shapes {shown}.\n"
        f"The batch is saved in {folder}. Lower trainer.learning_rate, set trainer.clip_gradient, or use float32; the "
        "last checkpoint is intact."
    )


def save_batch(folder: Path, rank: int, parts: Sequence[Part], facts: Mapping[str, Any]) -> None:
    """Save one rank's share of a batch for debugging.

    rankR.safetensors: `<part>/<what>` for points, points_canonical, mask, drop_path, the teacher's maps and, with a
    global loss, whole; `<part>/teacher-2/<what>` and so on of further teachers;
    rankR.json: `facts` and the shapes' ids.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    for number, part in enumerate(parts):
        found = {"points": part.points, "points_canonical": part.points_canonical, **part.draws._asdict()}
        found |= _said(part.maps, part.whole)
        for index, said in enumerate(part.further, start=2):
            found |= {f"teacher-{index}/{name}": value for name, value in _said(said.maps, said.whole).items()}
        tensors |= {f"{number}/{name}": value.cpu().contiguous() for name, value in found.items()}
    replace_file(folder / f"rank{rank}.safetensors", save(tensors))
    write_json(folder / f"rank{rank}.json", {**facts, "ids": [id for part in parts for id in part.ids]})


def _said(maps: TokenMaps | None, whole: Tensor | None) -> dict[str, Tensor]:
    found = {} if whole is None else {"whole": whole}
    if maps is not None:
        found |= {"features": maps.features, "saliency": maps.saliency, **maps.geometry._asdict()}
    return found
