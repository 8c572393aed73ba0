"""Every implementation of an operator behind one signature, and clouds to try them on.

``implementations("fps")`` parametrises a test over the plain definition, the numba twin (through the public function),
the host build of the ``.cu`` source and the GPU; one that cannot run here is skipped with its reason. All take and give
NumPy arrays, with int64 indices, so one test body serves them all.
"""

import ctypes
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cuda import _backend, plain
from cuda.backproject import backproject, backproject_on, pixels, pixels_on
from cuda.chamfer import chamfer, nearest_backward_on, nearest_on
from cuda.fps import farthest_point_sample, fps_on
from cuda.gather import gather, gather_backward_on, gather_on, group, group_on
from cuda.geometry import ViewGeometry
from cuda.knn import knn, knn_on
from cuda.project import project, project_on

__all__ = ["CLOUDS", "FAST", "KERNELS", "SIZES", "TELLING_CLOUDS", "cloud", "host_launch", "implementations"]

FAST = ("plain", "numba", "cuda")
"""Implementations for full-size inputs."""

KERNELS = ("host", "host backwards", "cuda")
"""The ``.cu`` sources."""

Arrays = tuple[np.ndarray, ...]

SIZES = (1, 2, 31, 32, 33, 257, 2049)
"""Around a warp, around a block, past a tile."""


# -- inputs ------------------------------------------------------------------------------------------------------------


def cloud(kind: str, n: int, *, seed: int = 0) -> np.ndarray:
    """[n, 3] float32 of one of CLOUDS."""
    return CLOUDS[kind](np.random.default_rng(seed), n).astype(np.float32)


CLOUDS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "ball": lambda rng, n: rng.normal(size=(n, 3)) * 0.4,
    "one place": lambda rng, n: np.full((n, 3), 0.3),
    "origin": lambda rng, n: np.zeros((n, 3)),
    "duplicates": lambda rng, n: rng.normal(size=(-(-n // 3), 3)).repeat(3, 0)[:n],
    "grid": lambda rng, n: rng.integers(0, 4, size=(n, 3)) / 4.0,  # many equal distances
    "line": lambda rng, n: np.linspace(-1, 1, n)[:, None] * [[1.0, 0, 0]],
    "flat": lambda rng, n: rng.normal(size=(n, 3)) * [[1.0, 1, 0]],
    "far": lambda rng, n: rng.normal(size=(n, 3)) + 1e4,
    "very far": lambda rng, n: rng.normal(size=(n, 3)) + 1e9,  # float32 keeps a handful of distinct values
    "huge": lambda rng, n: rng.normal(size=(n, 3)) * 1e18,
    "tiny": lambda rng, n: rng.normal(size=(n, 3)) * 1e-30,  # squares underflow
    "subnormal": lambda rng, n: rng.normal(size=(n, 3)) * 1e-38,  # so does the size of a pixel
}

TELLING_CLOUDS = ("ball", "one place", "grid", "very far")
"""Those for the host builds, which are slow: ordinary, all equal, many ties, coarse rounding."""


# -- host build --------------------------------------------------------------------------------------------------------

_SHIM = Path(__file__).resolve().parents[1] / "kernels" / "host_shim.h"
_FLAGS = ("-std=c++17", "-O2", "-ffp-contract=off", "-fPIC", "-shared", "-Wall", "-Wno-unknown-pragmas", "-Werror")


@cache
def _build_folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="i2p-host-kernels-")  # removed when the interpreter ends


@cache
def _library(source: str, defines: tuple[tuple[str, int], ...]) -> ctypes.CDLL:
    text = _backend.kernel_source(source, dict(defines))
    kernels = re.findall(r'extern "C" __global__ void [^(]*?\s*(?:__launch_bounds__\(\w+\)\s*)?(\w+)\(', text)
    folder = Path(_build_folder().name)
    stem = "-".join([source, *(f"{name}{value}" for name, value in defines)])
    unit = folder / f"{stem}.cpp"
    unit.write_text(f'#include "{_SHIM}"\n{text}\n' + "".join(f"HOST_KERNEL({kernel})\n" for kernel in kernels))
    compiler = shutil.which("g++")
    assert compiler
    run = subprocess.run([compiler, *_FLAGS, "-o", folder / f"{stem}.so", unit], capture_output=True, text=True)
    assert run.returncode == 0, f"{source}.cu does not compile on the host:\n{run.stderr}"
    return ctypes.CDLL(str(folder / f"{stem}.so"))


def host_launch(*, reverse: bool = False) -> _backend.Launch:
    """A launcher for CPU tensors: the ``.cu`` source compiled by g++; ``reverse`` runs blocks and threads backwards."""

    def launch(
        source: str,
        name: str,
        blocks: int,
        threads: int,
        arguments: Sequence[Tensor | int],
        defines: Mapping[str, int],
    ) -> None:
        values: list[Any] = []
        for argument in arguments:
            if isinstance(argument, Tensor):
                assert argument.is_contiguous()
                assert argument.device.type == "cpu"
                values.append(ctypes.c_void_p(argument.data_ptr()))
            else:
                values.append(ctypes.c_int(argument))
        array = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        function = getattr(_library(source, tuple(sorted(defines.items()))), f"host_{name}")
        function.restype = ctypes.c_char_p
        error = function(blocks, threads, int(reverse), array)
        assert error is None, f"{source}.cu, {name}: {error.decode()}"

    return launch


# -- implementations ---------------------------------------------------------------------------------------------------


def implementations(operator: str, *names: str) -> list[Any]:
    """Parameters for ``@pytest.mark.parametrize("impl", implementations("fps"))``: all, or those of ``names``."""
    no_compiler = "" if shutil.which("g++") else "no g++ to build the kernels for the host"
    no_gpu = "" if torch.cuda.is_available() else "no CUDA device"
    table: dict[str, tuple[Callable[..., Any], str]] = {
        "plain": (_PLAIN[operator], ""),
        "numba": (_on("cpu", _PUBLIC[operator]), ""),
        "host": (_on("cpu", _KERNEL[operator](host_launch())), no_compiler),
        "host backwards": (_on("cpu", _KERNEL[operator](host_launch(reverse=True))), no_compiler),
        "cuda": (_on("cuda", _PUBLIC[operator]), no_gpu),
    }
    return [
        pytest.param(function, id=name, marks=[pytest.mark.skip(reason=reason)] if reason else [])
        for name, (function, reason) in table.items()
        if not names or name in names
    ]


def _on(device: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """NumPy arrays in and out of a function of tensors."""

    def call(*arguments: Any, **settings: Any) -> Any:
        tensors = (
            torch.from_numpy(np.ascontiguousarray(a)).to(device) if isinstance(a, np.ndarray) else a for a in arguments
        )
        return _as_arrays(function(*tensors, **settings))

    return call


def _as_arrays(result: Any) -> Any:
    if isinstance(result, Tensor):
        return result.detach().cpu().numpy()
    return tuple(_as_arrays(part) for part in result)


def _project(points: Tensor, **settings: Any) -> tuple[Tensor, ...]:
    depth, geometry = project(points, **settings)
    return depth, *geometry


def _pixels(points: Tensor, lo: Tensor, cell: Tensor, offset: Tensor, image_side: int) -> Tensor:
    return pixels(points, ViewGeometry(lo, cell, offset), image_side)


def _backproject(maps: Tensor, points: Tensor, lo: Tensor, cell: Tensor, offset: Tensor, image_side: int) -> Tensor:
    return backproject(maps, points, ViewGeometry(lo, cell, offset), image_side=image_side)


def _chamfer_backward(a: Tensor, b: Tensor, grad_a: Tensor, grad_b: Tensor) -> tuple[Tensor, ...]:
    a, b = a.requires_grad_(), b.requires_grad_()
    return torch.autograd.grad(chamfer(a, b), (a, b), (grad_a, grad_b))


def _gather_backward(grad: Tensor, idx: Tensor, N: int) -> Tensor:
    values = grad.new_zeros(grad.shape[0], N, grad.shape[2]).requires_grad_()
    return torch.autograd.grad(gather(values, idx), values, grad)[0]


_PUBLIC: dict[str, Callable[..., Any]] = {
    "gather": gather,
    "gather backward": _gather_backward,
    "group": group,
    "fps": farthest_point_sample,
    "knn": knn,
    "project": _project,
    "pixels": _pixels,
    "backproject": _backproject,
    "chamfer": chamfer,
    "chamfer backward": _chamfer_backward,
}


def _plain_chamfer_backward(a: np.ndarray, b: np.ndarray, grad_a: np.ndarray, grad_b: np.ndarray) -> Arrays:
    _, _, from_a, from_b = plain.chamfer(a, b)
    first = plain.chamfer_backward(a, b, from_a, from_b, grad_a, grad_b)
    return first, plain.chamfer_backward(b, a, from_b, from_a, grad_b, grad_a)


def _plain_backproject(maps: np.ndarray, points: np.ndarray, *geometry_and_side: Any) -> np.ndarray:
    return plain.backproject(maps, plain.pixels(points, *geometry_and_side), geometry_and_side[-1])


_PLAIN: dict[str, Callable[..., Any]] = {
    "gather": plain.gather,
    "gather backward": plain.gather_backward,
    "group": plain.group,
    "fps": plain.farthest_point_sample,
    "knn": plain.knn,
    "project": plain.project,
    "pixels": plain.pixels,
    "backproject": _plain_backproject,
    "chamfer": lambda a, b: plain.chamfer(a, b)[:2],
    "chamfer backward": _plain_chamfer_backward,
}


def _kernel_fps(launch: _backend.Launch) -> Callable[..., Any]:
    return lambda points, k, skip_near_origin=False: fps_on(launch, points, k, skip_near_origin).long()


def _kernel_knn(launch: _backend.Launch) -> Callable[..., Any]:
    def call(points: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        dist2, idx = knn_on(launch, points, queries, k)
        return dist2, idx.long()

    return call


def _kernel_project(launch: _backend.Launch) -> Callable[..., Any]:
    def call(points: Tensor, image_side: int = 224, splat: int = 5, reduction: str = "sum") -> tuple[Tensor, ...]:
        return project_on(launch, points, image_side, splat, reduction)

    return call


def _kernel_backproject(launch: _backend.Launch) -> Callable[..., Any]:
    def call(maps: Tensor, points: Tensor, *geometry_and_side: Any) -> Tensor:
        return backproject_on(launch, maps, pixels_on(launch, points, *geometry_and_side), geometry_and_side[-1])

    return call


def _kernel_chamfer_backward(launch: _backend.Launch) -> Callable[..., Any]:
    def call(a: Tensor, b: Tensor, grad_a: Tensor, grad_b: Tensor) -> tuple[Tensor, Tensor]:
        _, from_a = nearest_on(launch, a, b)
        _, from_b = nearest_on(launch, b, a)
        return (
            nearest_backward_on(launch, a, b, from_a, from_b, grad_a, grad_b),
            nearest_backward_on(launch, b, a, from_b, from_a, grad_b, grad_a),
        )

    return call


_KERNEL: dict[str, Callable[[_backend.Launch], Callable[..., Any]]] = {
    "gather": lambda launch: lambda values, idx: gather_on(launch, values, idx),
    "gather backward": lambda launch: lambda grad, idx, N: gather_backward_on(launch, grad, idx, N),
    "group": lambda launch: lambda *arguments: group_on(launch, *arguments),
    "fps": _kernel_fps,
    "knn": _kernel_knn,
    "project": _kernel_project,
    "pixels": lambda launch: lambda *arguments: pixels_on(launch, *arguments),
    "backproject": _kernel_backproject,
    "chamfer": lambda launch: lambda a, b: (nearest_on(launch, a, b)[0], nearest_on(launch, b, a)[0]),
    "chamfer backward": _kernel_chamfer_backward,
}
