"""The caches that are attacked."""

import pytest

from tests.support.victims import CONFIGS, Victim


@pytest.fixture(scope="module", params=sorted(CONFIGS))
def victim(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Victim:
    return Victim(tmp_path_factory.mktemp("victim") / "c", CONFIGS[request.param])
