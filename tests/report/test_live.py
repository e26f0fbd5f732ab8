import http.client
import socket

import pytest
import report_samples as samples

from normwise.errors import InputError, StoreError
from normwise.report import live


def serving(read, port=0):
    return live.serving(read, port, ahead=lambda study: live.Ahead(42, 300.0))


def ask(address, path="/", method="GET", host=None):
    name = address.removeprefix("http://").rstrip("/")
    connection = http.client.HTTPConnection(name, timeout=300)
    connection.request(method, path, headers={"Host": host or name})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer, body


def test_page_is_drawn_anew_and_asks_again_until_finished():
    states = [samples.unfinished(), samples.study()]
    with serving(lambda: states.pop(0)) as address:
        answer, body = ask(address)
        assert answer.status == 200
        assert answer.headers["Refresh"] == str(live.REFRESH_SECONDS)
        assert b"5 of 42 trials are done, about 5 min 0 s of training are left" in body
        answer, body = ask(address, "/?hide-method=batch")
        assert answer.headers["Refresh"] is None
        assert b"Unfinished" not in body


def test_only_reading_of_the_one_page_by_this_machine_is_answered():
    with serving(samples.study) as address:
        assert ask(address, "/etc/passwd")[0].status == 404
        assert ask(address, method="POST")[0].status == 501
        assert ask(address, host="evil.example")[0].status == 403
        assert ask(address, host="localhost:80")[0].status == 200
        assert ask(address, method="HEAD")[1] == b""


def test_listens_on_loopback_only_and_stops():
    with serving(samples.study) as address:
        port = int(address.rstrip("/").rpartition(":")[2])
        own = socket.gethostbyname(socket.gethostname())
        if not own.startswith("127."):
            with pytest.raises(OSError):
                socket.create_connection((own, port), timeout=2)
        with pytest.raises(InputError, match=f"cannot serve on port {port}"), serving(samples.study, port):
            pass
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=2)


def test_a_study_that_cannot_be_read_is_said_and_asked_for_again():
    def read():
        raise StoreError("study.db holds no study yet")

    with serving(read) as address:
        answer, body = ask(address)
    assert answer.status == 503
    assert answer.headers["Refresh"]
    assert body == b"study.db holds no study yet\n"
