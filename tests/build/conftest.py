"""Parts of a build set torch's threads to 1, for the whole process; the tests after these must not inherit that."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def torch_threads_kept() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
