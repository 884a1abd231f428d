"""Check the server of `fdqn watch`: it listens on this machine, refuses other host names, and serves only the page."""

import http.client
import json
import shutil
import signal
import socket
import threading

import pytest
from test_html_report import without_plotly, written  # noqa: F401

from fdqn import cli
from fdqn.experiment import html_report, process, watching

pytestmark = pytest.mark.usefixtures("without_plotly")


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """Read changed files without a pause."""
    monkeypatch.setattr(watching, "PAUSE_FACTOR", 0.0)


@pytest.fixture
def run(tmp_path):
    return written(tmp_path / "run", reports=3, done=False)


@pytest.fixture
def served(run):
    """Serve a run in another thread."""
    server = watching.server(run, 0, "runs/one")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def ask(server, path="/", method="GET", **headers):
    """Send a request and return its status, headers and text."""
    connection = http.client.HTTPConnection(*server.server_address, timeout=20)
    connection.putrequest(method, path, skip_host=True)
    for name, value in {"Host": f"127.0.0.1:{server.server_address[1]}", **headers}.items():
        if value is not None:
            connection.putheader(name, value)
    connection.endheaders()
    response = connection.getresponse()
    return response.status, dict(response.getheaders()), response.read().decode()


def test_it_listens_on_this_machine_only(served):
    assert served.server_address[0] == "127.0.0.1"
    assert watching.address(served) == f"http://127.0.0.1:{served.server_address[1]}/"


def test_the_page_and_its_update(served):
    status, headers, text = ask(served)
    assert status == 200
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"
    assert "Access-Control-Allow-Origin" not in headers
    assert "300 of 1,000" in text
    assert 'data-seconds="3"' in text
    status, _, part = ask(served, "/update")
    assert status == 200
    assert part in text
    assert "<html" not in part
    status, headers, nothing = ask(served, method="HEAD")
    assert (status, nothing) == (200, "")
    assert int(headers["Content-Length"]) == len(text.encode())


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("127.0.0.1", True),
        ("127.0.0.1:6060", True),
        ("localhost:9000", True),  # a forwarded port
        ("LOCALHOST", True),
        ("[::1]:6060", True),
        ("evil.example", False),
        ("evil.example:6060", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example:6060", False),
        ("evil.example@127.0.0.1", False),
        ("127.0.0.1@evil.example", False),
        ("127.0.0.1/evil", False),
        ("192.168.0.7:6060", False),
        ("0.0.0.0:6060", False),
        ("127.0.0.1:port", False),
        ("127.0.0.1:99999", False),
        ("[::1", False),
        ("", False),
    ],
)
def test_only_host_names_of_this_machine_are_accepted(host, own):
    assert watching.is_own_name(host) is own


@pytest.mark.parametrize("host", ["evil.example", None, ""])
@pytest.mark.parametrize("path", ["/", "/update"])
def test_another_host_name_is_refused(served, host, path):
    status, _, text = ask(served, path, Host=host)
    assert status == 403
    assert text == "host: expected one of 127.0.0.1, localhost, ::1, got another\n"


def test_two_host_names_are_refused(served):
    with socket.create_connection(served.server_address, timeout=20) as raw:
        raw.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n")
        assert raw.recv(100).split(b"\r\n")[0].split()[1] == b"403"


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/config.json",
            "/metrics.csv",
            "/../run/config.json",
            "/%2e%2e/run/config.json",
            "/update/",
            "/update?x",
            "/?a",
        ),
        *(
            "/etc/passwd",
            "//etc/passwd",
            "/..%2f..%2fetc/passwd",
            "http://127.0.0.1/",
            "file:///etc/passwd",
            "*",
            "/\\x",
        ),
    ],
)
def test_other_paths_are_refused(served, path):
    status, headers, text = ask(served, path)
    assert (status, text) == (404, "path: expected /, got another\n")
    assert headers["Content-Type"].startswith("text/plain")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "CONNECT", "get"])
def test_other_methods_are_refused(served, method):
    assert ask(served, method=method)[0] == 501


def test_the_page_follows_the_files(served, run):
    assert "300 of 1,000" in ask(served, "/update")[2]
    whole = (run / "metrics.csv").read_text()
    (run / "metrics.csv").write_text(
        whole + "".join(f"400,{seed},400,44,40,9,1,2,3,0.1,0.001,2\n" for seed in range(5, 11))
    )
    assert "400 of 1,000" in ask(served, "/update")[2]
    (run / "metrics.csv").write_text(whole + "damaged,rows\n" * 6)
    assert "400 of 1,000" in ask(served, "/update")[2], "the last valid state is shown"
    (run / "metrics.csv").write_text(whole)
    assert "300 of 1,000" in ask(served, "/update")[2]


def test_the_files_are_read_again_only_after_a_change(served, run, monkeypatch):
    ask(served, "/update")
    monkeypatch.setattr(html_report, "current", lambda *given: pytest.fail("read again"))
    assert ask(served, "/update")[0] == ask(served)[0] == 200


def test_updates_take_a_small_fraction_of_the_time(served, run, monkeypatch):
    assert "300 of 1,000" in ask(served, "/update")[2]
    monkeypatch.setattr(watching, "PAUSE_FACTOR", 1e6)
    rows = "".join(f"400,{seed},400,44,40,9,1,2,3,0.1,0.001,2\n" for seed in range(5, 11))
    whole = (run / "metrics.csv").read_text()
    (run / "metrics.csv").write_text(whole + rows)
    assert "400 of 1,000" in ask(served, "/update")[2]
    (run / "metrics.csv").write_text(whole)
    assert "400 of 1,000" in ask(served, "/update")[2]


def test_a_run_that_cannot_be_read_is_reported(served, run):
    (run / "metrics.csv").write_text("step,seed\n1,x\n")
    status, _, text = ask(served)
    assert status == 503
    assert text.startswith("run: expected rows of numbers in")


def test_a_removed_run_is_reported(served, run):
    assert ask(served)[0] == 200
    shutil.rmtree(run)
    for path in ("/update", "/"):
        assert ask(served, path)[::2] == (503, f"run: expected a run folder, got {run}, which was removed\n")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_ctrl_c_ends_the_command(run, monkeypatch, capsys, number, code):
    closed = []
    monkeypatch.setattr(watching._Server, "serve_forever", lambda self: process.interrupt(number))
    monkeypatch.setattr(watching._Server, "server_close", lambda self: closed.append(self.socket.close()))
    monkeypatch.chdir(run.parent)
    assert cli.main(["watch", "run", "--port", "0"]) == code
    out, err = capsys.readouterr()
    assert out.startswith("http://127.0.0.1:")
    assert out.endswith("/ shows run; press Ctrl-C to stop\n")
    assert out.count("\n") == 1
    assert err == ("" if code == 0 else "fdqn: stopped by SIGTERM\n")
    assert closed == [None]


def test_json_prints_the_address(run, monkeypatch, capsys):
    monkeypatch.setattr(watching._Server, "serve_forever", lambda self: process.interrupt(signal.SIGINT))
    assert cli.main(["watch", str(run), "--port", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["address"].startswith("http://127.0.0.1:")


def test_a_port_in_use_is_refused(run, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert cli.main(["watch", str(run), "--port", str(port)]) == 1
    assert capsys.readouterr().err == (
        f"fdqn: port: expected a free port, got {port}, which is in use; choose another --port\n"
    )
