"""A warm guest takes its user when a job takes it."""

import http.server
import json
import threading
import typing
from pathlib import Path

import pytest

from failavoid.agent import assignment
from failavoid.agent.settings import Settings

PROJECT = Path(__file__).parents[2]
SCRIPT = PROJECT / "roles/sysimage/files/guest-identity"
ANSWER = {
    "job": "job-1",
    "user": {"name": "ada", "uid": 1000, "gid": 1000},
    "authorized_keys": ["ssh-ed25519 AAAA ada"],
    "hosts": {"g0001": "10.0.2.1", "head": "10.0.0.100"},
}
TAKES_ALL = """
import json
def assign(assignment):
    with open({path!r}, "w") as file:
        json.dump(assignment, file)
"""


class ResourceManager(http.server.BaseHTTPRequestHandler):
    """Answers each poll with the next of ``answers``."""

    answers: typing.ClassVar[list] = []
    said: typing.ClassVar[list] = []

    def do_GET(self):
        self.answer(self.answers.pop(0))

    def do_POST(self):
        self.said.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.answer({})

    def answer(self, document):
        body = json.dumps(document).encode()
        self.send_response(503 if document is None else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_words):
        pass


@pytest.fixture
def settings(monkeypatch):
    monkeypatch.setattr(assignment, "PAUSE_S", (0.01, 0.01))
    ResourceManager.answers, ResourceManager.said = [], []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), ResourceManager)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/"
    yield Settings("g0001", "guest", "guest.g0001.u.x", ("127.0.0.1", 1), resource_manager=url)
    server.shutdown()
    server.server_close()


def test_the_guest_waits_for_a_job_and_says_when_it_has_its_user(settings, tmp_path):
    ResourceManager.answers += [None, {}, ANSWER]  # away, no job yet, a job
    script, taken = tmp_path / "identity", tmp_path / "taken"
    script.write_text(TAKES_ALL.format(path=str(taken)))
    assignment.run(settings, str(script))
    assert json.loads(taken.read_text()) == ANSWER
    assert ResourceManager.said == [{"error": ""}]


def test_a_guest_that_can_not_take_its_user_says_why(settings, tmp_path):
    ResourceManager.answers += [ANSWER]
    script = tmp_path / "identity"
    script.write_text("def assign(assignment):\n    raise OSError('no room in /etc')\n")
    assignment.run(settings, str(script))
    assert ResourceManager.said == [{"error": "OSError: no room in /etc"}]


def functions_of_the_image(acts):
    """The functions of guest-identity, whose acts on the guest are written down instead."""
    found = {"__name__": "guest_identity"}
    exec(compile(SCRIPT.read_text(), SCRIPT, "exec"), found)
    for name in ("set_name", "set_peers", "add_user", "make_home", "allow_keys", "mount", "write"):
        found[name] = lambda *words, name=name: acts.append((name, *words[:1]))
    return found


def test_keys_come_last_so_that_who_comes_in_finds_everything():
    acts = []
    functions_of_the_image(acts)["assign"](ANSWER)
    assert acts == [
        ("set_peers", ANSWER["hosts"]),
        ("add_user", ANSWER["user"]),
        ("make_home", ANSWER["user"]),
        ("allow_keys", "ada"),
    ]


def test_a_guest_with_a_user_at_its_boot_has_all_at_once_and_a_warm_one_only_what_is_the_sites():
    identity = {
        "name": "g0001",
        "ssh_host_key": "key",
        "root_authorized_keys": [],
        "agent": {},
        "mounts": ["home"],
        "hosts": {"head": "10.0.0.100"},
    }
    warm = []
    functions_of_the_image(warm)["apply"](identity)
    assert [act[0] for act in warm] == ["set_name", "write", "allow_keys", "write", "mount", "set_peers"]
    acts = []
    functions_of_the_image(acts)["apply"]({**identity, **ANSWER})
    assert acts[: len(warm) - 1] == warm[:-1]
    assert [act[0] for act in acts[len(warm) - 1 :]] == ["set_peers", "add_user", "make_home", "allow_keys"]
