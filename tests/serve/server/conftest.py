from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.serve.server.running import Running


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One for all tests of a file that leave it as it was."""
    with Running(
        tmp_path_factory.mktemp("server") / "state", {"host_name": ("pictures.example",)}
    ) as running:
        yield running
