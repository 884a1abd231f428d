"""Serve the page of a run on this machine while it trains.

The server responds to GET and HEAD of two paths: `/` is the page, and `/update` its sections. It refuses requests whose
Host header does not name this machine, so that a web site cannot read the page by DNS rebinding.
"""

import errno
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fdqn import check
from fdqn.experiment import html_report, page_data
from fdqn.report import page

HOST = "127.0.0.1"

UPDATE_SECONDS = 3.0
"""Seconds between updates of the page in the browser."""

PAUSE_FACTOR = 10.0
"""Pause before files are read again, as a multiple of the duration of the last update. It leaves the CPU to the run."""

HOST_NAMES = ("127.0.0.1", "localhost", "::1")
"""Names of this machine that are accepted in the Host header of a request."""


class Source:
    """The page of a run, read again when its files have changed. Methods may be called from several threads."""

    def __init__(self, path: Path, name: str) -> None:
        self._path, self._name, self._lock = path, name, threading.Lock()
        self._state: Any = None
        self._found: page_data.Page | None = None
        self._text = ""
        self._due = 0.0

    def page(self) -> page_data.Page:
        """Return the data of the page. Raises ValueError if no intact state of the run has been read yet."""
        with self._lock:
            self._refresh()
            assert self._found is not None
            return self._found

    def text(self) -> str:
        """Return the sections of the page as HTML. Raises ValueError as `page` does."""
        with self._lock:
            self._refresh()
            assert self._found is not None
            if not self._text:
                started = time.monotonic()
                self._text = page.body(self._found)
                self._due += PAUSE_FACTOR * (time.monotonic() - started)
            return self._text

    def _refresh(self) -> None:
        started = time.monotonic()
        if self._found is not None and (started < self._due or _state(self._path) == self._state):
            return
        state = _state(self._path)
        if not self._path.is_dir():
            raise ValueError(f"run: expected a run folder, got {self._path}, which was removed")
        try:
            self._found = html_report.current(self._path, self._name)
        except (OSError, ValueError) as error:
            if self._found is None:
                raise ValueError(str(error)) from None
            return  # a file in the middle of a write; the next update reads it again
        self._state, self._text = state, ""
        self._due = time.monotonic() + PAUSE_FACTOR * (time.monotonic() - started)


def _state(path: Path) -> list[tuple[str, int, int]]:
    """Return names, modification times and sizes of the files that the page shows."""
    folders = [path, *html_report.program_folders(path)]
    patterns = ("*.json", "*.csv", "*.gif")
    found = []
    for file in sorted({file for folder in folders for pattern in patterns for file in folder.glob(pattern)}):
        try:
            status = file.stat()
        except OSError:
            continue
        found.append((str(file), status.st_mtime_ns, status.st_size))
    return found


def server(path: Path, port: int, name: str | None = None) -> ThreadingHTTPServer:
    """Return a server on 127.0.0.1 for the page of a run or sweep, finished or not.

    Args:
        path: run folder, or folder of a sweep.
        port: TCP port; 0 for a free port.
        name: name of the folder on the page; by default the path.

    Call `serve_forever` to handle requests, and `server_close` at the end. Raises ValueError if the folder is not a
    run, plotly is missing, or the port is in use.
    """
    check.count("port", port)
    if port > 65535:
        raise ValueError(f"port: expected at most 65535, got {port}")
    html_report.check_run(path)
    page.library()
    source = Source(path, str(path) if name is None else name)
    try:
        return _Server((HOST, port), _handler(source))
    except OSError as error:
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            reason = "which is in use" if error.errno == errno.EADDRINUSE else "which needs more rights"
            raise ValueError(f"port: expected a free port, got {port}, {reason}; choose another --port") from None
        raise


def address(served: ThreadingHTTPServer) -> str:
    """Return the URL of a server."""
    return f"http://{HOST}:{served.server_address[1]}/"


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore the error of a connection, such as one that the browser closed."""


def _handler(source: Source) -> type[BaseHTTPRequestHandler]:
    contents: dict[str, Callable[[], str]] = {
        "/": lambda: page.html(source.page(), UPDATE_SECONDS),
        "/update": source.text,
    }

    class Handler(BaseHTTPRequestHandler):
        """Respond to GET and HEAD of the paths in `contents`."""

        timeout = 10  # seconds after which an idle connection is closed

        def do_GET(self) -> None:
            self._respond(with_content=True)

        def do_HEAD(self) -> None:
            self._respond(with_content=False)

        def _respond(self, with_content: bool) -> None:
            status, kind, text = self._content()
            content = page.encoded(text)
            self.send_response(status)
            for name, value in {
                "Content-Type": f"{kind}; charset=utf-8",
                "Content-Length": str(len(content)),
                "Cache-Control": "no-store",
                "X-Content-Type-Options": "nosniff",
                "X-Frame-Options": "DENY",
                "Cross-Origin-Resource-Policy": "same-origin",
            }.items():
                self.send_header(name, value)
            self.end_headers()
            if with_content:
                self.wfile.write(content)

        def _content(self) -> tuple[HTTPStatus, str, str]:
            """Return status, type and text of the response."""
            hosts = self.headers.get_all("Host", [])
            if len(hosts) != 1 or not is_own_name(hosts[0]):
                return (
                    HTTPStatus.FORBIDDEN,
                    "text/plain",
                    f"host: expected one of {', '.join(HOST_NAMES)}, got another\n",
                )
            if self.path not in contents:
                return HTTPStatus.NOT_FOUND, "text/plain", "path: expected /, got another\n"
            try:
                return HTTPStatus.OK, "text/html", contents[self.path]()
            except ValueError as error:
                return HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", f"{error}\n"

        def version_string(self) -> str:
            return "fdqn"

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler


def is_own_name(host: str) -> bool:
    """Return True if a Host header names this machine. Any port is accepted, as port forwarding may change it."""
    try:
        parts = urlsplit(f"//{host}")
        port = parts.port
    except ValueError:
        return False
    plain = parts.netloc == host and not parts.path and parts.username is None and (port is None or port > 0)
    return plain and parts.hostname in HOST_NAMES
