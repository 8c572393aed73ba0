"""One thread of torch in every test: the machines that run them are shared, and tiny tensors gain nothing from more."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.support.training import training_cache


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """24 records in three shards."""
    return training_cache(tmp_path_factory.mktemp("cache") / "cache")
