"""The state of an installation: versions, processors, memory, disk, teachers' weights, and whether kernels run."""

import os
import platform
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.config import TeacherConfig

__all__ = ["Check", "examine", "report_text"]

REQUIRED = (
    "torch", "numpy", "numba", "zarr", "numcodecs", "dask", "distributed", "fsspec", "webdataset", "open_clip_torch",
    "timm", "safetensors", "scikit-learn", "h5py", "click", "matplotlib", "jinja2",
)  # fmt: skip
OPTIONAL = {
    "cuda": ("cupy-cuda13x", "cupy-cuda12x"),
    "formats": ("DracoPy", "laspy", "lazrs", "lib3mf", "pycollada", "pye57", "usd-core"),
    "remote": ("aiohttp", "s3fs"),
}
VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "HF_HOME",
    "HF_HUB_OFFLINE",
)
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd")
WITHOUT_A_GPU = "sm_90"  # what the kernels are compiled for where there is no GPU to ask


@dataclass(frozen=True)
class Check:
    """One thing that was tried.

    state  "ok", "absent" (nothing is wrong, something cannot be had) or "failed"
    text   what was found, and a remedy where there is one
    """

    name: str
    state: str
    text: str


def examine(folder: Path) -> dict[str, Any]:
    """Examine this machine and installation, without the network and in a few seconds.

    folder  whose disk is asked for free space.
    ->      {"versions", "optional", "machine", "environment", "checks": [{"name", "state", "text"}], "failed": count},
            JSON types only.
    """
    checks = [*_kernel_checks(), *_teacher_checks()]
    versions = {name: _version(name) for name in ("i2p-pretrain", *REQUIRED)}
    checks += [
        Check(name, "failed", f"not installed; pip install {name}")
        for name, found in versions.items()
        if found is None and name != "i2p-pretrain"
    ]
    return {
        "versions": {"python": platform.python_version(), **versions},
        "optional": {extra: {name: _version(name) for name in names} for extra, names in OPTIONAL.items()},
        "machine": _machine(folder),
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "checks": [vars(check) for check in checks],
        "failed": sum(check.state == "failed" for check in checks),
    }


def report_text(found: dict[str, Any]) -> str:
    """Format the findings of `examine` as lines to read, or to paste into a bug report."""
    versions, machine = found["versions"], found["machine"]
    lines = [
        "  ".join(f"{name} {version or 'absent'}" for name, version in list(versions.items())[:4]),
        "  ".join(f"{name} {version or 'absent'}" for name, version in list(versions.items())[4:]),
    ]
    for extra, packages in found["optional"].items():
        lines.append(f"[{extra}]  " + "  ".join(f"{name} {version or 'absent'}" for name, version in packages.items()))
    threads = machine["threads"]
    lines += [
        f"system   {machine['system']}",
        f"CPU      {machine['processor']}, {machine['cores']} cores for this process; {' '.join(machine['flags'])}",
        f"threads  torch {threads['torch']}, numba {threads['numba']}",
        f"memory   {machine['memory_available'] / 2**30:.1f} of {machine['memory'] / 2**30:.1f} GiB available",
        *(f"disk     {free / 2**30:.1f} GiB free at {place}" for place, free in machine["disk_free"].items()),
        *(f"GPU      {gpu['name']}, {gpu['memory'] / 2**30:.0f} GiB, {gpu['architecture']}" for gpu in machine["gpus"]),
    ]
    lines += [f"{name}={value}" for name, value in found["environment"].items()]
    width = max(len(check["name"]) for check in found["checks"])
    lines += [f"{check['state']:<6}  {check['name']:<{width}}  {check['text']}" for check in found["checks"]]
    return "\n".join(lines)


def _machine(folder: Path) -> dict[str, Any]:
    import numba
    import psutil
    import torch

    memory = psutil.virtual_memory()
    gpus = []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(index)
            gpus.append(
                {"name": card.name, "memory": card.total_memory, "architecture": f"sm_{card.major}{card.minor}"}
            )
    places = {str(folder.absolute()), tempfile.gettempdir()}
    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "flags": _flags(),
        "threads": {"torch": torch.get_num_threads(), "numba": numba.get_num_threads()},
        "memory": memory.total,
        "memory_available": memory.available,
        "disk_free": {place: shutil.disk_usage(place).free for place in sorted(places)},
        "gpus": gpus,
        "torch_cuda": torch.version.cuda,
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def _flags() -> list[str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return []
    for line in text.splitlines():
        if line.startswith(("flags", "Features")):
            return [flag for flag in FLAGS if flag in line.split()]
    return []


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _kernel_checks() -> list[Check]:
    import torch

    checks = [_tried("kernels on the CPU", partial(_run_kernels, "cpu"))]
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not cards:
        why = "torch is a CPU build" if torch.version.cuda is None else "torch sees no GPU"
        checks.append(Check("GPU", "absent", why))
    architectures = sorted(
        {f"sm_{major}{minor}" for major, minor in map(torch.cuda.get_device_capability, range(cards))}
        or {WITHOUT_A_GPU}
    )
    for architecture in architectures:
        checks.append(_tried(f"NVRTC, {architecture}", partial(_compile_kernels, architecture)))
    for index in range(cards):
        checks.append(_tried(f"kernels on cuda:{index}", partial(_run_kernels, f"cuda:{index}")))
    return checks


def _tried(name: str, attempt: Callable[[], str]) -> Check:
    """An attempt as a check: ImportError is "absent", since CuPy is an extra; whatever else it raises is "failed"."""
    try:
        return Check(name, "ok", attempt())
    except ImportError as error:
        return Check(name, "absent", f"{error}; pip install 'i2p-pretrain[cuda]' (or [cuda12]) for GPUs")
    except Exception as error:
        return Check(name, "failed", f"{type(error).__name__}: {error}")


def _run_kernels(device: str) -> str:
    """Farthest points and nearest neighbours of a few clouds, against the plain definition in NumPy."""
    import numpy as np
    import torch

    from cuda import fps, knn, plain

    points = np.random.default_rng(0).random((2, 77, 3), dtype=np.float32)
    cloud = torch.from_numpy(points).to(device)
    expected = plain.farthest_point_sample(points, 9)
    if not np.array_equal(fps.farthest_point_sample(cloud, 9).cpu().numpy(), expected):
        raise RuntimeError("farthest-point sampling disagrees with its definition")
    dist2, idx = knn.knn(cloud, cloud[:, :11].contiguous(), 5)
    expected_dist2, expected_idx = plain.knn(points, points[:, :11], 5)
    if not (np.array_equal(idx.cpu().numpy(), expected_idx) and np.array_equal(dist2.cpu().numpy(), expected_dist2)):
        raise RuntimeError("nearest neighbours disagree with their definition")
    return "agree with their definitions"


def _compile_kernels(architecture: str) -> str:
    from cuda.compiling import BUILDS, compile_kernel

    for source, builds in BUILDS.items():
        for defines in builds:
            compile_kernel(source, defines, architecture)
    return f"{len(BUILDS)} sources compile"


def _teacher_checks() -> list[Check]:
    """Check whether the weights of every preset's teacher are on this machine."""
    from cli.experiment.toml import load_experiment, preset_names

    teachers: dict[str, TeacherConfig] = {}
    for preset in preset_names():
        teacher = load_experiment(preset).teacher
        if not teacher.random and not teacher.weights:
            teachers.setdefault(f"teacher {teacher.architecture} {teacher.pretrained}", teacher)
    return [_weights(name, teacher) for name, teacher in teachers.items()]


def _weights(name: str, teacher: "TeacherConfig") -> Check:
    from open_clip import get_pretrained_cfg

    from pipeline.teacher.tower import embedded_weights
    from pipeline.teacher.weights import cached_weights, read_weights

    if teacher.pretrained == "embedded":
        return _tried(name, lambda: f"{len(read_weights(embedded_weights(teacher.architecture)).tensors)} tensors")
    entry = get_pretrained_cfg(teacher.architecture, teacher.pretrained)
    found = cached_weights(teacher.architecture, teacher.pretrained, entry)
    if found is None:
        return Check(name, "absent", "not downloaded yet; a build downloads them, or set teacher.weights to a file")
    return Check(name, "ok", str(found))
