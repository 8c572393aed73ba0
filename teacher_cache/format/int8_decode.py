"""Codes times scales as float16: the hot loop of reading int8 features.

Compiled by numba on first use, because it must leave the interpreter lock: in NumPy it is a dozen short calls a block,
and two reading threads then spend their time handing the lock to each other.
"""

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["multiply_to_half"]


def multiply_to_half(codes: NDArray[np.int8], scale: NDArray[np.float32], out: NDArray[np.float16]) -> None:
    """Multiply codes [..., C] by scale [...] in float32 and round to float16 into `out` [..., C], all C-contiguous.

    Gives the same bits as NumPy's conversion if every product is 0 or a normal float16 number. Multiplying by 2^-112
    turns the float32 exponent into float16's; what remains is to round away the low 13 bits, ties to even, and to move
    the sign.
    """
    channels = codes.shape[-1]
    lowered = scale.reshape(-1) * np.float32(2.0**-112)
    _compiled()(codes.reshape(-1, channels), lowered, out.view(np.uint16).reshape(-1, channels))


@cache
def _compiled() -> Any:
    import numba

    import cuda.twins  # noqa: F401 - finds a place for numba's cache where the usual one cannot be written

    return numba.njit(cache=True, nogil=True)(_rows)


def _rows(codes: Any, scale: Any, halves: Any) -> None:
    rows, channels = codes.shape
    products = np.empty(channels, np.float32)
    bits = products.view(np.uint32)
    for row in range(rows):
        for i in range(channels):
            products[i] = np.float32(codes[row, i]) * scale[row]
        for i in range(channels):
            rounded = bits[i] + np.uint32(0xFFF) + ((bits[i] >> np.uint32(13)) & np.uint32(1))
            sign = (rounded >> np.uint32(16)) & np.uint32(0x8000)
            halves[row, i] = ((rounded >> np.uint32(13)) & np.uint32(0x7FFF)) | sign
