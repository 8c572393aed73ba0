"""Five training losses of the tiny student; `python -m tests.support.golden_losses` writes their file."""

import json
from pathlib import Path

import torch

from tests.support.models import tiny_batch, tiny_model
from trainer.losses.terms import weighted_sum
from trainer.models.random_inputs import Draws

PATH = Path(__file__).parents[1] / "model" / "golden_losses.json"
STEPS = 5


def training_losses(**settings: object) -> list[list[float]]:
    """(3D, 2D) of each of the first steps with AdamW, everything from fixed seeds."""
    model = tiny_model(seed=1, **settings).train()
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=2e-3)
    points, maps = tiny_batch(seed=2)
    losses = []
    for step in range(STEPS):
        draws = Draws.for_records(range(len(points)), model.config, seed=3, epoch=step)
        output = model(points, points, maps, draws)
        optimizer.zero_grad()
        weighted_sum(output).backward()
        optimizer.step()
        losses.append([round(output["3d"].mean.item(), 7), round(output["2d"].mean.item(), 7)])
    return losses


if __name__ == "__main__":
    PATH.write_text(json.dumps(training_losses(), indent=1) + "\n")
