"""The operators inside torch: registered correctly, traceable whole, gradients through compiled code."""

import pytest
import torch
from torch import Tensor

from cuda.backproject import backproject
from cuda.chamfer import chamfer
from cuda.fps import farthest_point_sample
from cuda.knn import knn
from cuda.project import project

POINTS = torch.randn(2, 40, 3, generator=torch.Generator().manual_seed(0))
PIXEL = torch.randint(0, 16, (2, 3, 5, 2), generator=torch.Generator().manual_seed(1), dtype=torch.int32)
MAPS = torch.randn(2, 3, 16, 4, generator=torch.Generator().manual_seed(2))
VIEW = (torch.zeros(2, 3, 2), torch.ones(2, 3), torch.zeros(2, 3, 2, dtype=torch.int32))


def needing_grad(tensor: Tensor) -> Tensor:
    return tensor.clone().requires_grad_()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("fps", (POINTS, 5, False)),
        ("knn", (POINTS, POINTS[:, :7].contiguous(), 3)),
        ("project", (POINTS, 16, 3, "mean")),
        ("pixels", (POINTS, *VIEW, 16)),
        ("backproject", (MAPS, PIXEL, 16)),
        ("backproject", (needing_grad(MAPS), PIXEL, 16)),
        ("backproject", (MAPS.half(), PIXEL, 16)),
        ("backproject_backward", (torch.ones(2, 5, 3, 4), PIXEL, 16, 4)),
        ("chamfer", (POINTS, POINTS[:, :9].contiguous())),
        ("chamfer", (needing_grad(POINTS), needing_grad(POINTS[:, :9]))),
    ],
)
def test_registration(name, arguments):
    torch.library.opcheck(getattr(torch.ops.i2p, name).default, arguments)


def everything(points: Tensor, maps: Tensor) -> Tensor:
    """One use of each operator, with a gradient through the two that have one."""
    depth, geometry = project(points, image_side=16)
    centres = points.gather(1, farthest_point_sample(points, 8)[..., None].expand(-1, -1, 3))
    dist2, idx = knn(points, centres, 4)
    values = backproject(maps, centres, geometry, image_side=16)
    groups = points.gather(1, idx.flatten(1)[..., None].expand(-1, -1, 3)).view(-1, 4, 3)
    there, back = chamfer(groups * maps.mean(), groups)
    return values.square().mean() + there.mean() + back.mean() + depth.mean() + dist2.mean()


def test_compiles_as_one_graph_with_the_same_result_and_gradient():
    compiled = torch.compile(everything, backend="aot_eager", fullgraph=True)
    results = []
    for function in (everything, compiled):
        maps = needing_grad(MAPS)
        loss = function(POINTS, maps)
        loss.backward()
        results.append((loss.detach(), maps.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_works_under_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert everything(POINTS, MAPS).dtype == torch.float32


def test_default_dtype_does_not_leak_in():
    expected = project(POINTS, image_side=16)
    torch.set_default_dtype(torch.float64)
    try:
        depth, geometry = project(POINTS, image_side=16)
        assert depth.dtype == torch.float32
        assert all(torch.equal(a, b) for a, b in zip(geometry, expected[1], strict=True))
        maps = needing_grad(MAPS)
        backproject(maps, POINTS, geometry, image_side=16).sum().backward()
        assert maps.grad.dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_no_gradient_is_an_error_not_a_zero():
    points = needing_grad(POINTS)
    depth, _ = project(points, image_side=16)
    with pytest.raises(RuntimeError, match=r"no autograd formula was registered|does not require grad"):
        depth.sum().backward()
