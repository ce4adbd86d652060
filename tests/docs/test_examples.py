"""Every Python block of the README and the docs runs, each page from top to bottom in one namespace.

The pages need no markup for it. Whatever host an example names is a real HTTP and HTTPS server on the loopback: only
the look-up of names is replaced. A block that does nothing but set upper-case names is a piece of Django settings and
holds until the next such block; a function called `test_...` is called.
"""

from __future__ import annotations

import ast
import gc
import json
import re
import socket
import ssl
import threading
import warnings
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import trustme
from django.test import override_settings

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
HOSTS = ["*.example.com", "*.resend.com", "*.postmarkapp.com", "mandrillapp.com"]
NEEDS = {
    "django-tasks.md": ["django.tasks"],
    "recipes.md": ["rq", "dramatiq", "huey", "procrastinate", "post_office"],  # `nox -s recipes` has them
}
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[tuple[int, str]]:
    """The page's Python blocks, each with the number of its first line."""
    text = page.read_text(encoding="utf-8")
    return [(text.count("\n", 0, found.start(1)) + 1, found[1]) for found in BLOCK.finditer(text)]


class Api(BaseHTTPRequestHandler):
    """An API on a good day: takes everything, and answers as the mail providers in the examples do."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path.endswith("/messages/send.json"):
            recipients = json.loads(sent)["message"]["to"]
            answer: object = [{"email": to["email"], "status": "sent", "_id": "1"} for to in recipients]
        else:
            answer = {"id": "1"}
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_PUT = do_DELETE = do_POST

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def internet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Every host name leads to our own two servers: port 443 to the one with TLS, any other to the plain one."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    for trusting in ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.setenv(trusting, str(tmp_path / "authority.pem"))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(*HOSTS).configure_cert(context)
    plain, secure = (ThreadingHTTPServer(("127.0.0.1", 0), Api) for _ in range(2))
    secure.socket = context.wrap_socket(secure.socket, server_side=True)
    look_up: Callable[..., Any] = socket.getaddrinfo

    def local(host: str, port: int, *args: Any, **kwargs: Any) -> Any:
        if host not in ("127.0.0.1", "localhost"):
            host, port = "127.0.0.1", (secure if port == 443 else plain).server_port
        return look_up(host, port, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", local)
    for server in (plain, secure):
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield
    for server in (plain, secure):
        server.shutdown()
        server.server_close()


def is_settings(source: str) -> bool:
    """Does the block only set upper-case names?"""
    return all(
        isinstance(line, ast.Assign) and all(isinstance(to, ast.Name) and to.id.isupper() for to in line.targets)
        for line in ast.parse(source).body
    )


def run(page: Path) -> None:
    namespace: dict[str, Any] = {"__name__": page.stem}
    settings = override_settings()
    settings.enable()
    try:
        for line, source in blocks(page):
            before = set(namespace)
            # The empty lines in front make a traceback point into the page.
            exec(compile("\n" * (line - 1) + source, str(page), "exec"), namespace)
            if is_settings(source):
                settings.disable()
                settings = override_settings(**{name: namespace[name] for name in set(namespace) if name.isupper()})
                settings.enable()
                for name in [name for name in namespace if name.isupper()]:
                    del namespace[name]
            for name in set(namespace) - before:
                if name.startswith("test_"):
                    namespace[name]()
    finally:
        settings.disable()
        namespace.clear()


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.name)
@pytest.mark.usefixtures("internet")
def test_examples_run(page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for needed in NEEDS.get(page.name, []):
        pytest.importorskip(needed)
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        # Examples leave their sessions open, as short programs do.
        warnings.simplefilter("ignore", ResourceWarning)
        run(page)
        gc.collect()


def test_there_are_examples() -> None:
    """A change of the pages' markup must not switch the tests off."""
    assert blocks(ROOT / "README.md")
    assert sum(len(blocks(page)) for page in PAGES) >= 10
