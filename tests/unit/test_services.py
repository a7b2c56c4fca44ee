"""What every service does: it reads its settings strictly and asks everybody for a token."""

import asyncio
import threading
from dataclasses import dataclass

import pytest
from fastapi.testclient import TestClient

from failavoid.services import Changes, SettingsError, load_settings, make_app, require
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

    return TestClient(app)


def bearer(role):
    return {"Authorization": f"Bearer {mint(SECRET, role, 'someone')}"}


def test_nothing_is_answered_without_a_token(client):
    assert client.get("/who").status_code == 401
    assert client.post("/change").status_code == 401
    assert client.get("/no-such-route").status_code == 401
    assert client.get("/openapi.json").status_code == 401


def test_a_forged_token_is_refused(client):
    assert client.get("/who", headers={"Authorization": "Bearer operator.admin.0.AAAA"}).status_code == 401


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
