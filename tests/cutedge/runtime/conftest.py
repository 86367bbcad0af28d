"""Workers that these tests start begin with torch imported, but for those marked ``cold``."""

from collections.abc import Iterator

import pytest

from cutedge.runtime import home
from tests.support import warm

STARTED = home._started


@pytest.fixture(scope="session", autouse=True)
def _warm_workers() -> Iterator[None]:
    with warm.workers():
        yield


@pytest.fixture
def cold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have workers begin as a user's do."""
    monkeypatch.setattr(home, "_started", STARTED)
