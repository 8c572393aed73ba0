"""The operators of ``cuda/`` against what a user would otherwise run: ``python -m benchmarks.bench_kernels``.

A floor is operations over the rate of unfused float32 multiplies and adds in L1, on all threads, or bytes over the
bandwidth of a large copy; both rates are measured first. An operator that skips work whose result is known can pass it.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numba
import numpy as np
import torch
from torch import Tensor

from benchmarks._table import Row, Timing, environment, measure, print_table, write_json
from cuda.backproject import backproject, pixels
from cuda.chamfer import chamfer
from cuda.fps import farthest_point_sample
from cuda.gather import gather, group
from cuda.geometry import VIEW_AXES, ViewGeometry
from cuda.knn import knn
from cuda.project import project

RESULTS = Path(__file__).parent / "results" / "kernels.jsonl"


def surfaces(clouds: int, points: int) -> Tensor:
    """[clouds, points, 3]: ellipsoid shells of different proportions, in the unit sphere."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(clouds, points, 3, generator=generator), dim=-1)
    axes = 0.2 + 0.8 * torch.rand(clouds, 1, 3, generator=generator)
    return directions * axes / axes.amax(-1, keepdim=True)


# -- the machine's rates -----------------------------------------------------------------------------------------------


@numba.njit(nogil=True, cache=True)
def _multiply_add(x, y, repeats):
    for _ in range(repeats):
        for i in range(len(x)):
            y[i] = y[i] * x[i] + x[i]


def operations_per_ms() -> float:
    """Float32 operations a ms of all threads: unfused multiplies and adds over arrays that stay in L1."""
    x, y, repeats = np.full(4096, 0.5, np.float32), np.ones(4096, np.float32), 2000
    timing = measure(lambda: _multiply_add(x, y, repeats), seconds=0.3)
    return 2 * 4096 * repeats / timing.p20 * torch.get_num_threads()


def bytes_per_ms() -> float:
    """Bytes a ms written and read by a large copy."""
    source = torch.empty(1 << 26, dtype=torch.uint8)
    target = torch.empty_like(source)
    return 2 * source.numel() / measure(lambda: target.copy_(source), seconds=0.5).p20


# -- baselines ---------------------------------------------------------------------------------------------------------


def fps_in_torch(points: Tensor, k: int) -> Tensor:
    """The vectorised loop found in most repositories."""
    B, N, _ = points.shape
    idx = torch.zeros(B, k, dtype=torch.int64, device=points.device)
    best = torch.full((B, N), float("inf"), device=points.device)
    farthest = torch.zeros(B, dtype=torch.int64, device=points.device)
    rows = torch.arange(B, device=points.device)
    for j in range(k):
        idx[:, j] = farthest
        best = torch.minimum(best, (points - points[rows, farthest][:, None]).square().sum(-1))
        farthest = best.argmax(-1)
    return idx


def knn_in_torch(points: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    distance, idx = torch.cdist(queries, points).topk(k, largest=False)
    return distance, idx


def project_in_torch(points: Tensor, image_side: int = 224) -> Tensor:
    """The dense form of the reference: all 25 copies of every point, scattered with index_add."""
    B, N, _ = points.shape
    S = image_side
    two = torch.arange(-2, 3, device=points.device)
    around = torch.stack(torch.meshgrid(two, two, indexing="ij"), -1).view(25, 2)
    images = []
    for axes in VIEW_AXES:
        seen = points[..., axes]
        plane = seen[..., :2]
        lo = plane.amin(1, keepdim=True)
        cell = (plane - lo).amax((1, 2), keepdim=True) / (S - 3)
        ij = ((plane - lo) / cell).floor().long()
        spots = ij[:, :, None] + 1 + around  # [B, N, 25, 2]
        centre = (spots.amax((1, 2), keepdim=True) + spots.amin((1, 2), keepdim=True)) // 2
        spots = (spots + S // 2 - centre - 1).clamp(0, S - 1)
        flat = (torch.arange(B, device=points.device)[:, None, None] * S + spots[..., 0]) * S + spots[..., 1]
        depth = seen[..., 2:].expand(-1, -1, 25)
        images.append(
            torch.zeros(B * S * S, device=points.device).index_add_(0, flat.flatten(), depth.flatten()).view(B, S, S)
        )
    return torch.stack(images, 1)


def backproject_in_torch(maps: Tensor, points: Tensor, geometry: ViewGeometry, image_side: int = 224) -> Tensor:
    """Resize every map to the image, gather at the pixels: the reference's way, with its memory."""
    B, V, T, C = maps.shape
    side = round(T**0.5)
    pixel = pixels(points, geometry, image_side)
    grid = maps.view(B * V, side, side, C).permute(0, 3, 1, 2)
    large = torch.nn.functional.interpolate(grid, size=(image_side, image_side), mode="bicubic", align_corners=False)
    where = (pixel[..., 0] * image_side + pixel[..., 1]).long().view(B * V, 1, -1).expand(-1, C, -1)
    return large.flatten(2).gather(2, where).view(B, V, C, -1).permute(0, 3, 1, 2)


def chamfer_in_torch(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    every = (a[:, :, None] - b[:, None]).square().sum(-1)
    return every.amin(2), every.amin(1)


# -- cases -------------------------------------------------------------------------------------------------------------


def bench_fps(clouds: int, operations: float) -> list[Row]:
    points, k = surfaces(clouds, 2048), 512
    # 8 operations a point and sample; skipping boxes may go below.
    floor = clouds * 2048 * k * 8 / operations
    assert torch.equal(fps_in_torch(points, k), farthest_point_sample(points, k))
    row = partial(
        Row, case=f"FPS 2048 -> {k}, B = {clouds}", floor=floor, ours=measure(lambda: farthest_point_sample(points, k))
    )
    rows = [row(baseline_name="torch loop", baseline=measure(lambda: fps_in_torch(points, k), warmup=1))]
    try:
        import fpsample
    except ImportError:
        return [*rows, row(baseline_name="fpsample", baseline=None, note="not installed")]
    arrays = [cloud.numpy() for cloud in points]
    exact: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "vanilla": lambda cloud: fpsample.fps_sampling(cloud, k, start_idx=0),
        "KD-tree": lambda cloud: fpsample.bucket_fps_kdtree_sampling(cloud, k, start_idx=0),
    } | {
        f"KD-line, h = {h}": partial(fpsample.bucket_fps_kdline_sampling, n_samples=k, h=h, start_idx=0)
        for h in (2, 3, 4, 5, 7)
    }
    timings: dict[str, Timing] = {}
    for name, sample in exact.items():
        assert np.array_equal(sample(arrays[0]), greedy_from(arrays[0], int(sample(arrays[0])[0]), k)), name
        timings[name] = measure(partial(_each, sample, arrays), seconds=0.5)
    best = min(timings, key=lambda name: timings[name].p50)
    return [*rows, row(baseline_name=f"fpsample, {best} (best of {len(timings)})", baseline=timings[best])]


def _each(function: Callable[[np.ndarray], np.ndarray], arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [function(array) for array in arrays]


def greedy_from(cloud: np.ndarray, start: int, k: int) -> np.ndarray:
    """Ours from another start: fpsample's trees do not always take the start that they are given."""
    order = np.r_[start, np.delete(np.arange(len(cloud)), start)]
    return order[farthest_point_sample(torch.from_numpy(cloud[order])[None], k)[0].numpy()]


def bench_knn(clouds: int, operations: float) -> list[Row]:
    points, k = surfaces(clouds, 2048), 16
    queries = points[:, :512].contiguous()
    # 8 operations a pair; skipping boxes may go below.
    floor = clouds * 2048 * 512 * 8 / operations
    case = f"kNN 2048 x 512, k = {k}, B = {clouds}"
    ours = measure(lambda: knn(points, queries, k))
    torch_timing = measure(lambda: knn_in_torch(points, queries, k), warmup=1)
    from scipy.spatial import cKDTree

    def trees() -> list[np.ndarray]:
        pairs = zip(points.numpy(), queries.numpy(), strict=True)
        return [np.asarray(cKDTree(cloud).query(query, k=k, workers=-1)[0]) for cloud, query in pairs]

    np.testing.assert_allclose(np.stack(trees()) ** 2, knn(points, queries, k)[0].numpy(), rtol=1e-4, atol=1e-6)
    return [
        Row(case=case, floor=floor, ours=ours, baseline_name="scipy cKDTree, all cores", baseline=measure(trees)),
        Row(case=case, floor=floor, ours=ours, baseline_name="torch.cdist + topk", baseline=torch_timing),
    ]


def bench_project(clouds: int, bandwidth: float) -> list[Row]:
    points = surfaces(clouds, 2048)
    torch.testing.assert_close(project(points)[0], project_in_torch(points), rtol=0, atol=1e-4)
    floor = clouds * 3 * 224 * 224 * 4 / bandwidth  # the images are written once
    ours = measure(lambda: project(points))
    baseline = measure(lambda: project_in_torch(points), warmup=1)
    case = f"project 2048 points, 3 views, B = {clouds}"
    return [Row(case=case, floor=floor, ours=ours, baseline_name="dense torch scatter", baseline=baseline)]


def bench_backproject(clouds: int, baseline_clouds: int, operations: float) -> list[Row]:
    points = surfaces(clouds, 2048)
    queries = points[:, :512].contiguous()
    _, geometry = project(points)
    maps = torch.randn(clouds, 3, 196, 512, generator=torch.Generator().manual_seed(0))
    few = ViewGeometry(*(part[:baseline_clouds] for part in geometry))
    resize = partial(backproject_in_torch, maps[:baseline_clouds], queries[:baseline_clouds], few)
    torch.testing.assert_close(backproject(maps, queries, geometry)[:baseline_clouds], resize(), rtol=0, atol=1e-4)
    baseline = measure(resize, seconds=2, least=3, warmup=0)
    scale = clouds / baseline_clouds
    baseline = Timing(baseline.p50 * scale, baseline.p20 * scale, baseline.p80 * scale)
    floor = clouds * 3 * 512 * 512 * 31 / operations  # 16 products and 15 sums a value
    large = baseline_clouds * 3 * 224 * 224 * 512 * 4
    mine = 3 * 196 * 512 * 4 * torch.get_num_threads()
    print(f"\nback-projection, memory beside input and output: at most {mine / 1e6:.1f} MB", end="")
    print(f"; resized maps: {large / 1e6:.0f} MB for {baseline_clouds} clouds")
    name = f"resize + gather (B = {baseline_clouds}, scaled)"
    rows = []
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        stored = maps.to(dtype)
        ours = measure(partial(backproject, stored, queries, geometry))
        case = f"back-project 512 x 3 x 512, {str(dtype).removeprefix('torch.')}, B = {clouds}"
        rows.append(Row(case=case, floor=floor, ours=ours, baseline_name=name, baseline=baseline))
    return rows


def bench_chamfer(operations: float) -> list[Row]:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(16 * 205, 8, 3, generator=generator).requires_grad_() for _ in range(2))

    def step(function: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
        there, back = function(a, b)
        torch.autograd.grad(there.mean() + back.mean(), (a, b))

    floor = 2 * a.shape[0] * 64 * 8 / operations
    ours, baseline = measure(lambda: step(chamfer)), measure(lambda: step(chamfer_in_torch))
    case = f"Chamfer forward + backward, {a.shape[0]} x 8 x 8"
    return [Row(case=case, floor=floor, ours=ours, baseline_name="torch broadcast", baseline=baseline)]


def gather_in_torch(values: Tensor, idx: Tensor) -> Tensor:
    """index_select over the flattened batch; its gradient is index_add."""
    B, N, D = values.shape
    flat = (idx + torch.arange(B, device=idx.device).mul(N).view(B, *[1] * (idx.ndim - 1))).flatten()
    return values.flatten(0, 1).index_select(0, flat).view(*idx.shape, D)


def bench_gather(clouds: int, bandwidth: float) -> list[Row]:
    points = surfaces(clouds, 2048)
    centres = points[:, :512].contiguous()
    _, idx = knn(points, centres, 16)
    assert torch.equal(group(points, centres, idx), gather_in_torch(points, idx) - centres[:, :, None])
    rows = [
        Row(
            case=f"group 512 x 16 of 2048 points, B = {clouds}",
            floor=clouds * 512 * 16 * (12 + 8) / bandwidth,  # coordinates written, indices read
            ours=measure(lambda: group(points, centres, idx)),
            baseline_name="index_select, subtract",
            baseline=measure(lambda: gather_in_torch(points, idx) - centres[:, :, None]),
        )
    ]
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(clouds, 512, 96, generator=generator, requires_grad=True)
    members = knn(centres, centres[:, :256].contiguous(), 8)[1]
    grad = torch.randn(clouds, 256, 8, 96, generator=generator)

    def step(function: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        return torch.autograd.grad(function(values, members), values, grad)[0]

    torch.testing.assert_close(step(gather), step(gather_in_torch), rtol=1e-5, atol=1e-5)
    floor = clouds * (2 * 256 * 8 + 2 * 512) * 96 * 4 / bandwidth  # rows written and read back, values and sums once
    case = f"gather 256 x 8 of 512 x 96, forward + backward, B = {clouds}"
    ours, baseline = measure(lambda: step(gather)), measure(lambda: step(gather_in_torch))
    rows.append(Row(case=case, floor=floor, ours=ours, baseline_name="index_select", baseline=baseline))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clouds", type=int, default=32, help="clouds in a batch (default 32)")
    arguments = parser.parse_args()
    for name, value in environment().items():
        print(f"{name}: {value}")
    operations, bandwidth = operations_per_ms(), bytes_per_ms()
    print(f"floors: {operations / 1e6:.1f} Gop/s unfused float32 on all threads, {bandwidth / 1e6:.1f} GB/s copied")
    clouds = arguments.clouds
    rows = [
        *bench_fps(clouds, operations),
        *bench_knn(clouds, operations),
        *bench_project(clouds, bandwidth),
        *bench_backproject(min(clouds, 16), 2, operations),
        *bench_chamfer(operations),
        *bench_gather(clouds, bandwidth),
    ]
    print_table("Kernels", rows)
    write_json(RESULTS, "kernels", rows)


if __name__ == "__main__":
    main()
