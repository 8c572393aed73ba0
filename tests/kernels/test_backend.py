"""The backend: sources compile for every architecture we name, names do not clash, launches are checked."""

import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest
import torch

from cuda import _backend
from cuda.compiling import BUILDS, KernelError, compile_kernel
from tests.support.kernels import host_launch

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURES = ("sm_80", "sm_90")


def test_every_source_is_listed_here():
    found = {Path(entry.name).stem for entry in resources.files("cuda.kernels").iterdir() if entry.name.endswith(".cu")}
    assert found == set(BUILDS)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("source", BUILDS)
def test_nvrtc_compiles_without_spills_or_fused_arithmetic(source, architecture):
    pytest.importorskip("cupy_backends.cuda.libs.nvrtc", reason="CuPy is not installed")
    for defines in BUILDS[source]:
        log, ptx = compile_kernel(source, defines, architecture)
        spills = [line for line in log.splitlines() if "spill" in line]
        assert spills
        assert all(" 0 bytes spill stores, 0 bytes spill loads" in line for line in spills), log
        assert "fma" not in ptx


def test_a_source_that_does_not_compile_is_named():
    pytest.importorskip("cupy_backends.cuda.libs.nvrtc", reason="CuPy is not installed")
    with pytest.raises(KernelError, match=r"(?s)gather\.cu \{\}: .*LANES"):
        compile_kernel("gather", {}, "sm_80")
    with pytest.raises(KernelError, match="fps"):
        compile_kernel("fps", BUILDS["fps"][0], "sm_1")


def test_our_cuda_joins_nvidias_namespace():
    """torch, CuPy and NVIDIA's own packages import from the repository root, beside ours, in either order."""
    assert not (ROOT / "cuda" / "__init__.py").exists()
    pytest.importorskip("cupy", reason="CuPy is not installed")
    assert run_python("import torch, cupy, cuda.pathfinder, cuda.fps; print(cuda.fps.__file__)") == FPS
    assert run_python(OPERATORS_FIRST) == FPS


FPS = str(ROOT / "cuda" / "fps.py")
OPERATORS_FIRST = """
import sys, cuda.fps, cuda.knn, cuda.project, cuda.backproject, cuda.chamfer, cuda.gather
assert "cupy" not in sys.modules, "importing an operator must not import CuPy"
import cuda.pathfinder, cupy, torch
print(cuda.fps.__file__)
"""


def run_python(code: str) -> str:
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_defines_are_the_only_thing_added_to_a_source():
    text = (resources.files("cuda.kernels") / "knn.cu").read_text()
    assert _backend.kernel_source("knn", {"B": 2, "A": 1}) == f"#define A 1\n#define B 2\n{text}"


def test_nothing_is_launched_for_empty_work():
    _backend.launch("knn", "knn", 0, 256, (), {"WARPS": 8})  # would fail without a GPU


def test_too_large_a_launch_is_refused():
    with pytest.raises(ValueError, match=r"knn\.cu: knn would need 2147483648 blocks, .* pass fewer clouds at a time"):
        _backend.launch("knn", "knn", 2**31, 256, (), {"WARPS": 8})


def test_missing_cupy_is_explained(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    _backend._cupy.cache_clear()
    with pytest.raises(ImportError, match=r"need CuPy, .* pip install 'i2p-pretrain\[cuda\]', or move the tensors"):
        _backend.launch("knn", "knn", 1, 256, (torch.zeros(1),), {"WARPS": 8})
    _backend._cupy.cache_clear()


FAULTY = """
extern "C" __global__ void half_barrier(int* out) {
    if (threadIdx.x % 2) __syncthreads(); else __shfl_sync(FULL, 1, 0);
}
extern "C" __global__ void lost_lane(int* out) {
    if (threadIdx.x == 0) return;
    out[0] = __shfl_sync(FULL, 1, 0);
}
extern "C" __global__ void sound(int* out) {
    out[threadIdx.x] = __shfl_xor_sync(FULL, (int)threadIdx.x, 1);
    __syncthreads();
}
"""


@pytest.mark.parametrize(
    ("kernel", "problem"),
    [("half_barrier", "deadlock"), ("lost_lane", "a warp collective after a lane has returned"), ("sound", None)],
)
@pytest.mark.parametrize("reverse", [False, True])
def test_the_host_build_reports_what_a_gpu_leaves_undefined(kernel, problem, reverse, monkeypatch):
    monkeypatch.setattr(_backend, "kernel_source", lambda source, defines: f"#define FULL 0xffffffffu\n{FAULTY}")
    out = torch.zeros(64, dtype=torch.int32)

    def run():
        host_launch(reverse=reverse)("faulty", kernel, 2, 64, (out,), {})

    if problem is None:
        run()
        assert out.tolist() == [i ^ 1 for i in range(64)]
    else:
        with pytest.raises(AssertionError, match=f"faulty.cu, {kernel}: {problem}"):
            run()
