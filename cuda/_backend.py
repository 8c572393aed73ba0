"""Kernel launcher: compiles ``cuda/kernels`` by NVRTC through CuPy on first use and runs on torch's current stream.

Nothing here touches a GPU, or imports CuPy, before the first launch. An operator's launch code takes the launcher as an
argument, so the tests run it unchanged over a host build of the same sources.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any, Protocol

import torch
from torch import Tensor

__all__ = ["NVRTC_OPTIONS", "Launch", "blocks_for", "kernel_source", "launch"]

NVRTC_OPTIONS = ("--std=c++17", "--fmad=false")
"""No contraction: the twins round after each operation, and indices must come out the same."""

_MOST_BLOCKS = 2**31 - 1

Argument = Tensor | int


class Launch(Protocol):
    """Run kernel ``name`` of ``kernels/<source>.cu`` over ``blocks`` blocks of ``threads`` threads.

    A tensor is passed as the address of its (contiguous) data, an int as a C int. ``defines`` go before the source.
    """

    def __call__(
        self,
        source: str,
        name: str,
        blocks: int,
        threads: int,
        arguments: Sequence[Argument],
        defines: Mapping[str, int],
    ) -> None: ...


def launch(
    source: str, name: str, blocks: int, threads: int, arguments: Sequence[Argument], defines: Mapping[str, int]
) -> None:
    """Launch a kernel on CUDA tensors. Asynchronous: nothing is copied and the host does not wait."""
    if blocks == 0:  # CUDA refuses an empty grid
        return
    if blocks > _MOST_BLOCKS:
        raise ValueError(
            f"{source}.cu: {name} would need {blocks} blocks, more than the {_MOST_BLOCKS} that one launch allows; "
            "pass fewer clouds at a time"
        )
    cupy = _cupy()
    device = next(argument.device for argument in arguments if isinstance(argument, Tensor))
    with cupy.cuda.Device(device.index):
        kernel = _module(device.index, source, tuple(sorted(defines.items()))).get_function(name)
        # On torch's stream: its allocator reuses memory in the order of that stream; another could read freed memory.
        with cupy.cuda.Stream.from_external(_TorchStream(device)):
            kernel((blocks,), (threads,), tuple(_as_kernel_argument(argument) for argument in arguments))


def blocks_for(items: int, threads: int) -> int:
    """Return the number of blocks that hold one thread per item."""
    return -(-items // threads)


def kernel_source(source: str, defines: Mapping[str, int]) -> str:
    """Return the text of ``kernels/<source>.cu`` after its ``#define`` block."""
    block = "".join(f"#define {name} {value}\n" for name, value in sorted(defines.items()))
    return block + (resources.files("cuda.kernels") / f"{source}.cu").read_text(encoding="utf-8")


class _TorchStream:
    """torch's current stream behind the CUDA stream protocol (torch's own streams implement it only since 2.9)."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.current_stream(device)

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.stream.cuda_stream


def _as_kernel_argument(argument: Argument) -> Any:
    import numpy as np

    if isinstance(argument, Tensor):
        assert argument.is_contiguous(), "operators make their arguments contiguous"
        return np.uint64(argument.data_ptr())
    return np.int32(argument)


@cache
def _module(device: int, source: str, defines: tuple[tuple[str, int], ...]) -> Any:
    # One module a device: CuPy loads it where it is first used.
    return _cupy().RawModule(code=kernel_source(source, dict(defines)), options=NVRTC_OPTIONS, backend="nvrtc")


@cache
def _cupy() -> Any:
    try:
        import cupy
    except ImportError as error:
        raise ImportError(
            "CUDA tensors need CuPy, which compiles the kernels on first use, and it cannot be imported "
            f"({error}); install it with: pip install 'i2p-pretrain[cuda]', or move the tensors to the CPU"
        ) from error
    return cupy
