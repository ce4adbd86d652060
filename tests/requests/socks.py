"""A SOCKS5 proxy (RFC 1928), as small as can be: no authentication, CONNECT only."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def socks_proxy(*, refuse: int = 0) -> Iterator[str]:
    """The proxy's URL. The first `refuse` connections are told that the host can't be reached."""
    listener = socket.create_server(("127.0.0.1", 0))
    refusals = iter([4] * refuse)  # RFC 1928 section 6: host unreachable

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=talk, args=(client, next(refusals, 0)), daemon=True).start()

    def talk(client: socket.socket, reply: int) -> None:
        with client, contextlib.suppress(OSError):
            _, methods = client.recv(2)
            client.recv(methods)
            client.sendall(b"\x05\x00")
            kind = client.recv(4)[3]
            host = client.recv(client.recv(1)[0]).decode() if kind == 3 else socket.inet_ntoa(client.recv(4))
            port = int.from_bytes(client.recv(2), "big")
            client.sendall(bytes([5, reply, 0, 1, 0, 0, 0, 0, 0, 0]))
            if reply:
                return
            with socket.create_connection((host, port)) as server:
                back = threading.Thread(target=pump, args=(server, client), daemon=True)
                back.start()
                pump(client, server)
                back.join()

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"socks5h://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
