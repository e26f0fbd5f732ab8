import pytest

from normwise.errors import InputError
from normwise.study.address import is_url, redact
from normwise.study.catalog import open_database
from normwise.study.database import File, Memory
from normwise.study.server import Server


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("postgresql://ann:hush@db/x", "postgresql://ann:***@db/x"),
        ("to postgresql://ann:hu@sh/x:y@db:5/x and b@c", "to postgresql://ann:***@db:5/x and b@c"),
        ("postgresql://ann@db/x", "postgresql://ann@db/x"),
        ("postgresql:///x?host=db&password=hush&user=a", "postgresql:///x?host=db&password=***&user=a"),
        ("--storage 'postgresql://a:hush@db/x' --out b", "--storage 'postgresql://a:***@db/x' --out b"),
        ("ray://host:10001", "ray://host:10001"),
        ("no address", "no address"),
    ],
)
def test_passwords_are_taken_out(text, expected):
    assert redact(text) == expected


@pytest.mark.parametrize("text", ["C:\\studies", "a/b.db", "study.db", "", "results/x"])
def test_paths_are_no_urls(text):
    assert not is_url(text)


def test_what_can_hold_a_study(tmp_path):
    assert isinstance(open_database(None), Memory)
    assert open_database(tmp_path).path == tmp_path / "study.db"
    assert open_database(str(tmp_path / "mine.db")).path == tmp_path / "mine.db"
    assert open_database(f"sqlite:///{tmp_path}/a.db").path == tmp_path / "a.db"
    for url in ("postgresql://ann:hush@db/x", "postgres://ann:hush@db/x", "postgresql+psycopg2://ann:hush@db/x"):
        server = open_database(url)
        assert isinstance(server, Server)
        assert server.name == "postgresql://ann:***@db/x"
        assert "hush" not in repr(server)
    assert isinstance(open_database(File(tmp_path / "x.db")), File)
    for wrong in ("mysql://a:hush@b/c", "sqlite://", "file:///x"):
        with pytest.raises(InputError, match="cannot keep studies in") as caught:
            open_database(wrong)
        assert "hush" not in str(caught.value)
