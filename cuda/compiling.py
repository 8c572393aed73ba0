"""Compilation of the kernels with NVRTC, without a GPU: every source with the macros that launches give it."""

from collections.abc import Mapping

from cuda._backend import NVRTC_OPTIONS, kernel_source

__all__ = ["BUILDS", "KernelError", "compile_kernel"]

BUILDS: dict[str, list[dict[str, int]]] = {
    "fps": [{"THREADS": 64, "PER_THREAD": 1}, {"THREADS": 1024, "PER_THREAD": 8}, {"THREADS": 1024, "PER_THREAD": 0}],
    "knn": [{"WARPS": 8}],
    "project": [{"THREADS": 256}],
    "backproject": [{"THREADS": 256, "FORMAT": format_} for format_ in range(3)],
    "chamfer": [{"THREADS": 128}],
    "gather": [
        {"THREADS": 256, "LANES": lanes, "WIDTH": width} for lanes, width in ((4, 4), (32, 2), (32, 4), (32, 8))
    ],
}
"""Source -> the macros it is compiled with: each branch of each kernel at least once."""


class KernelError(RuntimeError):
    """A kernel that NVRTC does not compile; the text is NVRTC's."""


def compile_kernel(source: str, defines: Mapping[str, int], architecture: str) -> tuple[str, str]:
    """Compile ``kernels/<source>.cu`` for an architecture such as "sm_90" -> NVRTC's log, the PTX.

    Raises ImportError without CuPy, KernelError for a source that does not compile or an unknown architecture.
    """
    from cupy_backends.cuda.libs import nvrtc

    program = nvrtc.createProgram(kernel_source(source, defines), f"{source}.cu", (), ())
    try:
        nvrtc.compileProgram(program, (*NVRTC_OPTIONS, f"-arch={architecture}", "--ptxas-options=-v"))
        log, ptx = nvrtc.getProgramLog(program), nvrtc.getPTX(program)
    except nvrtc.NVRTCError as error:
        raise KernelError(f"{source}.cu {dict(defines)}: {error}\n{nvrtc.getProgramLog(program)}") from None
    finally:
        nvrtc.destroyProgram(program)
    return log, ptx.decode() if isinstance(ptx, bytes) else ptx
