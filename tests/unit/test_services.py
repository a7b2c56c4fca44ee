"""What every service does: it reads its settings strictly and asks everybody for a token."""

import asyncio
import contextlib
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass

import httpx
import pytest
from fastapi import HTTPException
from fastapi.testclient import TestClient

from failavoid.services import LONGEST_BODY, Changes, SettingsError, load_settings, make_app, require
from failavoid.shared.tokens import Identity, mint

SECRET = b"s" * 48


@dataclass
class Settings:
    port: int
    listen: str = "127.0.0.1"


def test_settings_are_read_from_yaml(tmp_path):
    (tmp_path / "s.yml").write_text("port: 7411\n")
    assert load_settings(Settings, tmp_path / "s.yml") == Settings(7411)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("# a comment\nport: many\n", "line 2.*int is needed"),
        ("port: 1\nprot: 2\n", "line 2.*unknown field 'prot'"),
        ("", "'port' is missing"),
        ("port: [", "is not YAML"),
    ],
)
def test_a_bad_setting_is_refused_with_its_line(tmp_path, text, complaint):
    (tmp_path / "s.yml").write_text(text)
    with pytest.raises(SettingsError, match=complaint):
        load_settings(Settings, tmp_path / "s.yml")


def test_settings_that_are_not_there_are_named(tmp_path):
    with pytest.raises(SettingsError, match=r"none.yml: cannot be read"):
        load_settings(Settings, tmp_path / "none.yml")


@pytest.fixture
def client():
    app = make_app("test", SECRET)

    @app.get("/who")
    def who(identity: Identity = require()) -> dict[str, str]:
        return {"role": identity.role}

    @app.post("/change")
    def change(identity: Identity = require("operator")) -> dict[str, str]:
        return {"by": identity.subject}

    @app.get("/missing")
    def missing() -> None:
        raise HTTPException(404, "there is no such thing")

    @app.get("/wrong")
    def wrong() -> None:
        raise ValueError("seven is no number")

    @app.get("/broken")
    def broken() -> None:
        raise KeyError("inside")

    return TestClient(app, raise_server_exceptions=False)


def bearer(role):
    return {"Authorization": f"Bearer {mint(SECRET, role, 'someone')}"}


def test_nothing_is_answered_without_a_token(client):
    assert client.get("/who").status_code == 401
    assert client.post("/change").status_code == 401
    assert client.get("/no-such-route").status_code == 401
    assert client.get("/openapi.json").status_code == 401


def test_a_forged_token_is_refused(client):
    assert client.get("/who", headers={"Authorization": "Bearer operator.admin.0.AAAA"}).status_code == 401


def test_a_token_of_other_letters_is_refused_like_any_that_is_forged(client):
    for token in (b"reader.someone.0.\xfc", b"reader.\xfc.0.AAAA", b"\xfc", b"...", b"reader.someone.0."):
        answer = client.get("/who", headers={b"Authorization": b"Bearer " + token})
        assert answer.status_code == 401, token
        assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_whatever_is_refused_is_refused_with_a_sentence(client):
    def detail(status, method, path, **words):
        answer = client.request(method, path, headers=words.pop("headers", bearer("operator")), **words)
        assert answer.status_code == status
        return answer.json()["detail"]

    assert detail(404, "GET", "/no-such") == "there is no GET /no-such here: /openapi.json lists what there is"
    assert detail(405, "GET", "/change") == "there is no GET /change here: /openapi.json lists what there is"
    assert detail(404, "GET", "/missing") == "there is no such thing"
    assert "is no number" in detail(422, "GET", "/wrong")
    assert "failed at GET /broken. This is a defect" in detail(500, "GET", "/broken")
    long = {"headers": {**bearer("operator"), "Content-Length": str(LONGEST_BODY + 1)}}
    assert f"at most {LONGEST_BODY}" in detail(413, "POST", "/change", **long)
    assert "come with its length" in detail(411, "POST", "/change", content=iter([b"{}"]))


def test_who_was_refused_is_logged(client, caplog):
    client.get("/who")
    client.post("/change%0Aforged-line", headers={"Authorization": "Bearer x"})
    client.post("/change", headers=bearer("reader"))
    stranger, forger, reader = (record.getMessage() for record in caplog.records if "was refused" in record.msg)
    assert stranger.startswith("'GET /who' was refused to testclient: a token is needed")
    assert "\n" not in forger
    assert reader.startswith("'POST /change' was refused to reader someone: a token of role operator is needed")


def test_a_role_may_do_what_is_its_to_do_and_no_more(client):
    assert client.get("/who", headers=bearer("reader")).json() == {"role": "reader"}
    refused = client.post("/change", headers=bearer("reader"))
    assert refused.status_code == 403
    assert "role operator is needed" in refused.json()["detail"]
    assert client.post("/change", headers=bearer("operator")).json() == {"by": "someone"}


def test_a_long_poll_ends_with_the_next_change_from_any_thread():
    changes = Changes()

    async def poll() -> int:
        threading.Timer(0.05, changes.bump).start()
        return await changes.wait(0, 30)

    assert asyncio.run(poll()) == 1


def test_a_long_poll_that_is_behind_returns_at_once_and_one_without_change_ends_by_itself():
    changes = Changes(5)
    assert asyncio.run(changes.wait(3, 30)) == 5
    assert asyncio.run(changes.wait(5, 0.01)) == 5


# -- the end of a service ------------------------------------------------------------------------------------------

BUSY = """
import asyncio, sys, threading
from fastapi.responses import StreamingResponse
from failavoid.services import Tls, make_app, run, set_up_logging

set_up_logging()
app = make_app("test", b"s" * 48)

async def events():
    while True:
        yield "news\\n"
        await asyncio.sleep(3600)

@app.get("/stream")
async def stream() -> StreamingResponse:
    return StreamingResponse(events())

@app.get("/poll")
async def poll() -> None:
    print("polled\\n", end="", flush=True)  # in one piece: two threads print
    await asyncio.sleep(3600)

@app.get("/work")
def work() -> None:
    print("at work\\n", end="", flush=True)
    threading.Event().wait()

run(app, "127.0.0.1", int(sys.argv[1]), Tls(enabled=False), lambda: print("all is kept", flush=True))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_service_that_is_stopped_keeps_what_it_must_and_waits_for_nobody(number):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    service = subprocess.Popen(
        [sys.executable, "-c", BUSY, str(port)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    token = {"Authorization": f"Bearer {mint(SECRET, 'operator', 'root')}"}
    client = httpx.Client(
        base_url=f"http://127.0.0.1:{port}", headers=token, timeout=30, transport=httpx.HTTPTransport(retries=10)
    )

    def cut_off(path):
        with contextlib.suppress(httpx.TransportError):
            client.get(path)

    asking = [threading.Thread(target=cut_off, args=(path,)) for path in ("/poll", "/work")]
    try:
        with client.stream("GET", "/stream") as answer:
            assert next(answer.iter_lines()) == "news"
            for thread in asking:
                thread.start()
            assert {service.stdout.readline(), service.stdout.readline()} == {"polled\n", "at work\n"}
            service.send_signal(number)
            said, errors = service.communicate(timeout=60)  # a thread that is at work never ends
    finally:
        service.kill()
    for thread in asking:
        thread.join()
    assert (service.returncode, said) == (0, "all is kept\n")
    assert "Traceback" not in errors
