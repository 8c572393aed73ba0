"""Two processes with half the batch each compute what one process computes with all of it."""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from cuda.token_maps import TokenMaps
from tests.support.models import assert_same, tiny_batch, tiny_model
from tests.support.ranks import WORLD, on_two_ranks
from trainer.losses.terms import weighted_sum
from trainer.models.hierarchical.student import I2PMAE
from trainer.models.random_inputs import Draws

VARIANTS = {
    "visible": {},
    "all": {"batch_norm_groups": "all"},
    "static": {"layout": "static"},
}


def batch(part: slice) -> tuple[Tensor, TokenMaps, Draws]:
    points, maps = tiny_batch(seed=5)
    draws = Draws.for_records(range(len(points)), tiny_model().config, seed=6, epoch=0)
    geometry = type(maps.geometry)(*(x[part] for x in maps.geometry))
    maps = TokenMaps(maps.features[part], maps.saliency[part], geometry, maps.image_side)
    return points[part], maps, Draws(draws.mask[part], draws.drop_path[part])


def summary(model: I2PMAE, loss: Tensor) -> dict[str, Tensor]:
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **gradients, **dict(model.named_buffers())}


def one_rank(rank: int) -> dict[str, dict[str, Tensor]]:
    """This rank's half with each variant: loss and gradients summed over the ranks, and the buffers."""
    half = 4 // WORLD
    results = {}
    for name, settings in VARIANTS.items():
        model = tiny_model(**settings).train()
        points, maps, draws = batch(slice(rank * half, (rank + 1) * half))
        output = model(points, points, maps, draws)
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
    model = tiny_model(**VARIANTS[name]).train()
    points, maps, draws = batch(slice(None))
    output = model(points, points, maps, draws)
    weighted_sum(output).backward()
    expected = summary(model, weighted_sum(output))
    for rank in ranks:
        assert_same(rank[name], expected)
