"""A resource manager whose hosts' libvirt and playbooks are played."""

import json
import threading
import time

from fastapi.testclient import TestClient

from failavoid.playbook_runner import PlaybookResult
from failavoid.resource_manager import guests
from failavoid.resource_manager.api import make_api
from failavoid.resource_manager.manager import make_manager
from failavoid.resource_manager.requests import Account, account_on_head
from failavoid.resource_manager.settings import HostSettings, Settings
from failavoid.services import Tls
from failavoid.shared.messages import Job, Membership, from_dict
from failavoid.shared.tokens import mint

SECRET = b"s" * 48
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ failavoid"
PATIENCE_S = 20.0
ACCOUNTS = {  # on the head
    "ada": Account(1000, frozenset({1000, 100})),
    "bob": Account(1001, frozenset({1000, 1001})),
    "nobody": account_on_head("nobody"),  # whom clients in tests really run as
}


def bearer(role, subject="ada"):
    return {"Authorization": f"Bearer {mint(SECRET, role, subject)}"}


SERVICE, OPERATOR, USER = bearer("service", "controller"), bearer("operator", "root"), bearer("user")


class Site:
    """The service and its surroundings: ``running`` are each host's guests by UUID, ``calls`` the playbooks run."""

    def __init__(self, folder, monkeypatch, hosts=4, **settings):
        image = folder / "sysimage" / "current"
        image.mkdir(parents=True, exist_ok=True)
        (folder / "authority.pem").write_text("the site's authority\n")
        manifest = {"digest": "d1", "root": "r1", "classes": {"guest": {"init": "/init", "kernel_arguments": "quiet"}}}
        (image / "manifest.json").write_text(json.dumps(manifest))
        self.settings = Settings(
            hosts=[HostSettings(f"host{n}", f"10.0.0.{n}", 2048 * 1024, {"0": [0, 1]}) for n in range(1, hosts + 1)],
            head_address="10.0.0.100",
            guest_network="10.0.2.0/24",
            prefix=16,
            tls=Tls(authority=str(folder / "authority.pem")),
            state=str(folder / "state"),
            sysimage=str(folder / "sysimage"),
            **{"share_cores": True, **settings},
        )
        self.running = {f"10.0.0.{n}": {} for n in range(1, hosts + 1)}
        self.silent, self.calls, self.fail, self.unheard = set(), [], {}, {}
        self.relocations, self.stay, self.unknown = (
            [],
            set(),
            set(),
        )  # asked for; guests that don't move, or nobody knows
        self.dead = set()  # hosts that let go of no guest
        self.hold = threading.Event()
        self.hold.set()
        monkeypatch.setattr(guests, "run_playbook", self.play)
        self.start()

    def start(self):
        """Begin a life of the service; one before is forgotten as kill -9 would."""
        if hasattr(self, "watch"):
            self.watch._pool.shutdown(wait=False)
        self.manager = make_manager(
            self.settings, SECRET, self.look, lambda host: self.unheard.get(host, ""), self.relocate, ACCOUNTS.get
        )
        self.store, self.watch = self.manager.store, self.manager.watch
        self.api = TestClient(make_api(self.manager))

    def look(self, address):
        if address in self.silent:
            return None
        return {uuid: guest["name"] for uuid, guest in self.running[address].items()}

    def why_unheard(self, host):
        return self.unheard.get(host, "")

    def relocate(self, request):
        """Play the controller."""
        self.relocations.append(request)
        names = {guest.name: guest for guest in self.store.membership().guests}
        ends = {}
        for placed in request.placements:
            guest = names[placed.guest]
            source, destination = self.running[self.address(guest.host)], self.running[self.address(placed.host)]
            ends[guest.name] = "failed" if guest.name in self.stay else "moved"
            if ends[guest.name] == "moved" and guest.uuid in source:
                destination[guest.uuid] = source.pop(guest.uuid)
        return {name: end for name, end in ends.items() if name not in self.unknown}

    def address(self, host):
        return f"10.0.0.{host[4:]}"

    def play(self, playbook, inventory, variables, ident, log_dir, timeout_s, on_event=None):
        self.calls.append((playbook, variables))
        log = log_dir / f"{ident}.log"
        if playbook == "launch.yml":
            self.hold.wait(PATIENCE_S)
        failure = self.fail.get(playbook)
        if isinstance(failure, list):
            failure = failure.pop(0) if failure else None
        if failure:
            return PlaybookResult(2, "failed", log, {}, [failure])
        results = {}
        for guest in variables.get("launch_guests", []):
            self.running[self.address(guest["host"])][guest["uuid"]] = guest
            said = {"guest": guest["name"], "state": "running", "pin_verified": True}
            results.setdefault(guest["host"], {}).setdefault("start", {"guests": []})["guests"].append(said)
        doomed = variables.get("remove_guests", [])
        dead = {guest["host"] for guest in doomed} & self.dead
        for guest in [guest for guest in doomed if guest["host"] not in dead]:
            self.running[self.address(guest["host"])].pop(guest["uuid"], None)
            results.setdefault(guest["host"], {"remove": {}})
        for key in ("retire_host", "restore_host"):
            if key in variables:
                results[variables[key]] = {"mark": {}}
        for host, tasks in results.items():
            for task, result in tasks.items():
                if on_event:
                    on_event(host, task, result)
        if dead:
            return PlaybookResult(4, "failed", log, results, [f"{host} does not answer" for host in sorted(dead)])
        return PlaybookResult(0, "successful", log, results)

    def played(self, playbook):
        return [variables for name, variables in self.calls if name == playbook]

    def ask(self, headers=USER, **changes):
        body = {
            "user": "ada",
            "uid": 1000,
            "gid": 1000,
            "public_key": KEY,
            "hosts": 2,
            "guests_per_host": 2,
            "guest_memory_kb": 262144,
            **changes,
        }
        return self.api.post("/jobs", json=body, headers=headers)

    def job(self, ident):
        return from_dict(Job, self.api.get(f"/jobs/{ident}", headers=USER).json())

    def until(self, happened, what):
        deadline = time.monotonic() + PATIENCE_S
        while not happened():
            assert time.monotonic() < deadline, what
            time.sleep(0.01)

    def ready(self, **changes):
        answer = self.ask(**changes)
        assert answer.status_code == 200, answer.text
        ident = answer.json()["id"]
        self.until(lambda: self.job(ident).state != "allocating", f"{ident} is still allocating")
        job = self.job(ident)
        assert job.state == "ready", job.message
        return job

    def end(self, ident, status=0, message="", headers=USER):
        return self.api.post(f"/jobs/{ident}/ended", json={"exit_status": status, "message": message}, headers=headers)

    def picture(self):
        return from_dict(Membership, self.api.get("/membership", headers=bearer("reader")).json())

    def pools(self):
        return {host.name: host.pool for host in self.picture().hosts}

    def host(self, name):
        return next(host for host in self.picture().hosts if host.name == name)

    def guests(self, job=None):
        return {guest.name: guest for guest in self.picture().guests if job is None or guest.job == job}

    def post(self, path, body=None, headers=SERVICE):
        return self.api.post(path, json=body or {}, headers=headers)
