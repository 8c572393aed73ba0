"""Two processes with half the batch each compute what one process computes with all of it."""

from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from cuda.token_maps import TokenMaps
from tests.support.models import assert_same, tiny_batch, tiny_model
from tests.support.plain_student import plain_student
from tests.support.ranks import WORLD, on_two_ranks
from trainer.losses.terms import Losses, weighted_sum
from trainer.models.random_inputs import Draws
from trainer.models.student import Student

VARIANTS = {
    "visible": tiny_model,
    "all": partial(tiny_model, batch_norm_groups="all"),
    "static": partial(tiny_model, layout="static"),
    "plain": plain_student,
    "adapters": partial(plain_student, adapters=(1,)),
    "masks": tiny_model,
    "static masks": partial(tiny_model, layout="static"),
    "plain masks": plain_student,
}
MASKS = 2  # of each shape, where a variant has several


def batch(model: Student, part: slice, masks: int) -> tuple[Tensor, TokenMaps, Draws]:
    points, maps = tiny_batch(seed=5)
    draws = Draws.for_records(range(len(points))[part], model.config, seed=6, epoch=0, masks=masks)
    geometry = type(maps.geometry)(*(x[part] for x in maps.geometry))
    maps = TokenMaps(maps.features[part], maps.saliency[part], geometry, maps.image_side)
    return points[part], maps, draws


def losses_of(name: str, model: Student, part: slice) -> Losses:
    points, maps, draws = batch(model, part, MASKS if "masks" in name else 1)
    plan = model.plan(points, points, maps, draws)
    return model.losses(plan, model.network(plan, draws.drop_path))


def summary(model: Student, loss: Tensor) -> dict[str, Tensor]:
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **gradients, **dict(model.named_buffers())}


def one_rank(rank: int) -> dict[str, dict[str, Tensor]]:
    """This rank's half with each variant: loss and gradients summed over the ranks, and the buffers."""
    half = 4 // WORLD
    results = {}
    for name, make in VARIANTS.items():
        model = make().train()
        output = losses_of(name, model, slice(rank * half, (rank + 1) * half))
        counts = torch.stack([term.count for term in output.values()])
        dist.all_reduce(counts)
        loss = weighted_sum(output, counts=dict(zip(output, counts, strict=True)))
        loss.backward()
        loss = loss.detach()
        for value in [loss, *(p.grad for p in model.parameters() if p.grad is not None)]:
            dist.all_reduce(value)
        results[name] = summary(model, loss)
    return results


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict[str, dict[str, Tensor]]]:
    return on_two_ranks(one_rank, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("name", VARIANTS)
def test_loss_gradients_and_buffers_equal_one_process(ranks, name):
    model = VARIANTS[name]().train()
    output = losses_of(name, model, slice(None))
    weighted_sum(output).backward()
    expected = summary(model, weighted_sum(output))
    for rank in ranks:
        assert_same(rank[name], expected)
