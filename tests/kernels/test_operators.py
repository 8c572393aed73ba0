"""The operators inside torch: registered correctly, traceable whole, gradients through compiled code."""

from collections.abc import Callable

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor

from cuda.backproject import backproject
from cuda.chamfer import chamfer
from cuda.fps import farthest_point_sample
from cuda.gather import gather, group
from cuda.knn import knn
from cuda.project import project

POINTS = torch.randn(2, 40, 3, generator=torch.Generator().manual_seed(0))
PIXEL = torch.randint(0, 16, (2, 3, 5, 2), generator=torch.Generator().manual_seed(1), dtype=torch.int32)
MAPS = torch.randn(2, 3, 16, 4, generator=torch.Generator().manual_seed(2))
MEMBERS = torch.randint(0, 40, (2, 5, 3), generator=torch.Generator().manual_seed(3))
NEAREST = torch.randint(0, 40, (2, 40), generator=torch.Generator().manual_seed(4), dtype=torch.int32)
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
        ("chamfer_backward", (POINTS, POINTS, NEAREST, NEAREST, torch.ones(2, 40), torch.ones(2, 40))),
        ("gather", (needing_grad(POINTS), MEMBERS.flatten(1))),
        ("gather", (POINTS.bfloat16(), MEMBERS.flatten(1))),
        ("gather_backward", (torch.ones(2, 15, 3), MEMBERS.flatten(1), 40)),
        ("group", (needing_grad(POINTS), needing_grad(POINTS[:, :5]), MEMBERS)),
    ],
)
def test_registration(name, arguments):
    torch.library.opcheck(getattr(torch.ops.i2p, name).default, arguments)


def everything(points: Tensor, maps: Tensor) -> Tensor:
    """One use of each operator, with a gradient through those that have one."""
    depth, geometry = project(points, image_side=16)
    centres = gather(points, farthest_point_sample(points, 8))
    dist2, idx = knn(points, centres, 4)
    values = backproject(maps, centres, geometry, image_side=16)
    scale = maps.mean()
    groups = group(points * scale, centres * scale, idx).flatten(0, 1)
    there, back = chamfer(groups, gather(points, idx).flatten(0, 1))
    return values.square().mean() + there.mean() + back.mean() + depth.mean() + dist2.mean()


def loss_and_gradient(function: Callable[..., Tensor], clouds: int = 2) -> tuple[Tensor, Tensor]:
    maps = needing_grad(MAPS[:clouds])
    loss = function(POINTS[:clouds], maps)
    loss.backward()
    assert maps.grad is not None
    return loss.detach(), maps.grad


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
def test_compiles_as_one_graph_with_the_same_result_and_gradient(autocast):
    torch.compiler.reset()
    compiled = torch.compile(everything, backend="aot_eager", fullgraph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        expected, got = loss_and_gradient(everything), loss_and_gradient(compiled)
    assert expected[1].any()
    assert torch.equal(got[0], expected[0])
    assert torch.equal(got[1], expected[1])


def test_one_graph_serves_every_batch_size():
    torch.compiler.reset()
    graphs = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(everything, backend=graphs, fullgraph=True, dynamic=True)
    points, maps = POINTS.repeat(4, 1, 1), MAPS.repeat(4, 1, 1, 1)
    for clouds in (2, 3, 8):
        assert torch.equal(compiled(points[:clouds], maps[:clouds]), everything(points[:clouds], maps[:clouds]))
    assert graphs.frame_count == 1


def test_autocast_changes_no_bit():
    expected = loss_and_gradient(everything)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = loss_and_gradient(everything)
    assert got[0].dtype == torch.float32
    assert torch.equal(got[0], expected[0])
    assert torch.equal(got[1], expected[1])


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
    with pytest.raises(RuntimeError, match=r"i2p::project has no gradient"):
        depth.sum().backward()
