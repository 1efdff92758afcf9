import pytest

from tests.serve.http.front import front


@pytest.fixture(scope="package")
def _server():
    with front() as here:
        yield here


@pytest.fixture
def server(_server):
    """A front whose engine is new."""
    _server.reset()
    yield _server
