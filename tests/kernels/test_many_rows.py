"""Arrays of more than 2^31 numbers: places in them are counted in 64 bits."""

import re
from pathlib import Path

import pytest
import torch

from cuda.gather import gather

KERNELS = sorted((Path(__file__).resolve().parents[2] / "cuda" / "kernels").glob("*.cu"))
GROWING = "item|value|pixel|view|point|centre|b"  # names of what is counted over a whole batch


def test_rows_beyond_the_reach_of_32_bits_are_gathered() -> None:
    """Memory of which a few pages are touched: the system hands out the others when they are."""
    many = 2**31 + 5
    values = torch.zeros(1, many, 1, dtype=torch.float16)
    values[0, [0, 4, many - 1], 0] = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float16)
    idx = torch.tensor([[many - 1, 0, 4, 2**31 + 4]])
    assert gather(values, idx)[0, :, 0].tolist() == [3, 1, 2, 3]
    with pytest.raises(IndexError):
        gather(values, torch.tensor([[many]]))


def code(path: Path) -> list[str]:
    """The lines of a kernel without comments."""
    text = re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.DOTALL)
    return [re.sub(r"//.*", "", line) for line in text.splitlines()]


def narrow(line: str) -> bool:
    """Whether a line of a kernel counts in 32 bits what grows with the batch."""
    declared = re.search(rf"\b(?:int|unsigned) (?:{GROWING}) =", line)
    block = re.search(r"(?<!\(long long\))\bblockIdx\.x \* ", line)
    kept = re.search(r"\bint \w+ = [^;]*blockIdx\.x(?! %)", line)
    compared = re.search(r">= (?!\(long long\))\w+ \* ", line)
    return bool(declared or block or kept or compared)


@pytest.mark.parametrize("path", KERNELS, ids=lambda path: path.name)
def test_kernels_count_in_64_bits_whatever_grows_with_the_batch(path: Path) -> None:
    """No test has a GPU that holds such arrays; so the sources are read."""
    lines = code(path)
    assert any("blockIdx" in line for line in lines)
    assert [line.strip() for line in lines if narrow(line)] == []


@pytest.mark.parametrize(
    "line",
    [
        "const int row = blockIdx.x * THREADS + threadIdx.x;",
        "if (row >= B * N) return;",
        "const int b = blockIdx.x / blocks;",
        "points += blockIdx.x * N * 3;",
        "const int view = item / Q;",
    ],
)
def test_that_law_can_fail(line: str) -> None:
    assert narrow(f"    {line}")
