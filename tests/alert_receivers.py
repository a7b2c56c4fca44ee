"""Whom the monitor tells: a webhook and a mail server, as simple as they can be, over real HTTP and SMTP."""

from __future__ import annotations

import contextlib
import json
import socketserver
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from failavoid.monitor.settings import AlertSettings


class Webhook:
    """``told`` is what was posted and taken; ``status`` is what it answers, ``asked`` how often it was asked."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []
        self.status, self.asked = 200, 0
        self.settings: AlertSettings


@contextlib.contextmanager
def webhook_at(address: str = "127.0.0.1") -> Iterator[Webhook]:
    """A webhook that listens there; its settings name it."""
    webhook = Webhook()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_POST(self) -> None:
            webhook.asked += 1
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if webhook.status == 200:
                webhook.told.append(body)
            self.send_response(webhook.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

    with ThreadingHTTPServer((address, 0), Handler) as server:
        webhook.settings = AlertSettings("webhook", url=f"http://{address}:{server.server_port}/hook/secret")
        with _served(server):
            yield webhook


@contextlib.contextmanager
def mail_server_at(address: str = "127.0.0.1") -> Iterator[tuple[int, list[tuple[list[str], str]]]]:
    """(port, [(receivers, message)]) of a mail server that listens there and keeps what it is given."""
    taken: list[tuple[list[str], str]] = []

    class Handler(socketserver.StreamRequestHandler):
        def say(self, words: str) -> None:
            self.wfile.write(f"{words}\r\n".encode())

        def handle(self) -> None:
            receivers: list[str] = []
            self.say("220 here")
            while line := self.rfile.readline().decode().strip():
                word = line.upper()
                if word.startswith("RCPT"):
                    receivers.append(line.split("<")[1].split(">")[0])
                elif word == "DATA":
                    self.say("354 go on")
                    message = ""
                    while (text := self.rfile.readline().decode()) != ".\r\n":
                        message += text
                    taken.append((receivers, message))
                self.say("221 bye" if word == "QUIT" else "250 ok")
                if word == "QUIT":
                    return

    with socketserver.ThreadingTCPServer((address, 0), Handler) as server, _served(server):
        yield server.server_address[1], taken


@contextlib.contextmanager
def _served(server: socketserver.ThreadingMixIn) -> Iterator[None]:
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
