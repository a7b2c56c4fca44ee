"""A cluster in memory around a real controller: resource manager, hosts, playbook and guests' agents are played."""

import json
import threading
import time
from pathlib import Path

import httpx

from failavoid.controller.clock import Clock
from failavoid.controller.controller import Controller
from failavoid.controller.journal import Journal
from failavoid.controller.libvirt_view import OTHER, RUNNING
from failavoid.controller.limits import Limits, Policy
from failavoid.controller.manager import Cluster, ResourceManager
from failavoid.controller.notices import NoticeBoard
from failavoid.controller.planning import Planner
from failavoid.controller.surroundings import Surroundings
from failavoid.controller.verification import Verifier
from failavoid.playbook_runner import PlaybookResult
from failavoid.services import Changes
from failavoid.shared.messages import (
    Alarm,
    Device,
    Evidence,
    Guest,
    GuestReport,
    Host,
    Job,
    JobRequest,
    Lease,
    LeaseRequest,
    Membership,
    Placement,
    from_dict,
    to_dict,
)

PATIENCE_S = 20.0


class Crash(BaseException):
    """The end of a controller's life, as one of its threads sees it."""


def _report(args, report=threading.excepthook):
    if args.exc_type is not Crash:
        report(args)


threading.excepthook = _report


class FakeManager:
    """The resource manager's API, and its memory. ``down`` makes it silent, ``refuse`` names paths it refuses."""

    def __init__(self):
        hosts = [Host(f"host{n}", f"10.0.0.{n}", "allocated" if n < 4 else "free", 2**21) for n in range(1, 6)]
        guests = [
            Guest(f"guest{n}", f"uuid-{n}", f"host{(n + 1) // 2}", f"10.0.1.{n}", 2**18, [0], 0, "u", "ready", "job-1")
            for n in range(1, 7)
        ]
        job = Job("job-1", JobRequest("u", 1000, 1000, "ssh-ed25519 A", 3, 2), "running", [g.name for g in guests])
        self.membership = Membership(1, hosts, guests, [job])
        self.lock = threading.RLock()
        self.leases, self.commits, self.retired, self.given_back, self.suspected = {}, [], {}, [], set()
        self.lose_answer, self.given_out, self.renewals, self.lease_s = False, 0, 0, 300.0
        self.down, self.refuse, self.spares = False, set(), ["host4", "host5"]
        self.requests, self.room = [], []  # what was asked for; hosts of the job that take more guests

    @property
    def job(self):
        return self.membership.jobs[0]

    def change(self):
        self.membership.version += 1

    def __call__(self, request):
        if self.down:
            raise httpx.ConnectError("refused", request=request)
        path = request.url.path
        body = json.loads(request.content) if request.content else {}
        for start in self.refuse:
            if path.startswith(start):
                return httpx.Response(409, json={"detail": f"{path} is refused"})
        with self.lock:
            return self.answer(request.method, path, body)

    def answer(self, method, path, body):
        if path == "/membership":
            return httpx.Response(200, json=to_dict(self.membership))
        if path == "/leases":
            return self.lease(from_dict(LeaseRequest, body))
        if path == "/placements":
            host = next(host for host in self.membership.hosts if host.name == body["host"])
            guests = {guest.name: guest for guest in self.membership.guests}
            return httpx.Response(
                200,
                json=[
                    to_dict(Placement(name, host.name, [core], 0, offered(host, guests.get(name))))
                    for core, name in enumerate(body["guests"])
                ],
            )
        if path.endswith("/suspect"):
            (self.suspected.discard if method == "DELETE" else self.suspected.add)(path.split("/")[2])
            return httpx.Response(200, json={})
        if method == "DELETE":
            return self.give_back(path.split("/")[-1])
        if path.endswith("/commit"):
            held = self.leases.pop(path.split("/")[2], None)
            if held is None:
                return httpx.Response(404, json={"detail": "no such lease"})
            self.commits.append((held.id, body["placements"]))
            for placement in body["placements"]:
                next(g for g in self.membership.guests if g.name == placement["guest"]).host = placement["host"]
            self.change()
            if self.lose_answer:
                self.lose_answer = False
                raise httpx.ReadTimeout("lost", request=None)
        elif path.endswith("/retire"):
            name = path.split("/")[2]
            self.retired[name] = body["reason"]
            next(host for host in self.membership.hosts if host.name == name).pool = "defunct"
            self.change()
        return httpx.Response(200, json={})

    def lease(self, request):
        self.requests.append(request)
        mine = [one for one in self.leases.values() if one.evacuation == request.evacuation]
        held = next((one for one in mine if one.host not in request.avoid_hosts), None)
        if held is None or (request.host and held.host != request.host):
            avoided = {
                host.name
                for host in self.membership.hosts
                if {f"{kind}={name}" for kind, name in host.domains.items()} & set(request.avoid_domains)
            }
            fit = [name for name in self.spares if name not in avoided.union(request.avoid_hosts)]
            host = next((name for name in fit if request.host in ("", name)), None)
            if host is None and request.beside:
                host = next((one.host for one in self.leases.values() if one.evacuation in request.beside), None)
            if host is None and request.pack:
                host = next((name for name in self.room if name not in request.avoid_hosts), None)
            if host is None:
                return httpx.Response(409, json={"detail": "all hosts are in use"})
            if host in self.spares:
                self.spares.remove(host)
            self.given_out += 1
            held = Lease(f"lease-{self.given_out}", host, request.evacuation, 0.0)
            self.leases[held.id] = held
        held.expires = time.time() + self.lease_s
        self.renewals += 1
        return httpx.Response(200, json=to_dict(held))

    def give_back(self, lease_id):
        lease = self.leases.pop(lease_id, None)
        if lease is None:
            return httpx.Response(404, json={"detail": "no such lease"})
        if next(host for host in self.membership.hosts if host.name == lease.host).pool == "free":
            self.spares.append(lease.host)
            self.spares.sort()
        self.given_back.append(lease_id)
        return httpx.Response(200, json={})


class World:
    """The controller in its surroundings; `restart` gives it a new life with the same journal."""

    def __init__(self, folder: Path, mode="act", policy=None, **limits):
        self.folder, self.mode, self.policy = folder, mode, policy or Policy()
        self.limits = Limits(
            **{
                "gather_timeout_s": PATIENCE_S,
                "gather_minimum_s": 0.05,
                "resume_timeout_s": PATIENCE_S,
                "settle_timeout_s": 0.3,
                "reach_timeout_s": 1.5,
                "retry_s": 0.02,
                **limits,
            }
        )
        self.manager = FakeManager()
        self.where = {g.name: {g.host: RUNNING} for g in self.manager.membership.guests}
        self.silent_hosts, self.silent_guests = set(), set()
        self.lingers, self.last_words, self.drop_playbook = False, [], False
        self.fail, self.preparation_fails, self.stuck = {}, "", False
        self.playbook_runs, self.says_nothing, self.unpinned = 0, set(), set()
        self.facts, self.aborted, self.silent_agents = {}, [], set()
        self.alive = threading.Event()
        self.begin()

    def begin(self):
        self.alive = threading.Event()
        self.alive.set()
        changed, news = threading.Condition(), Changes()
        clock = Clock(changed)
        journal = Journal(self.folder / "journal.sqlite")
        manager = ResourceManager("http://manager", "token", httpx.MockTransport(self.manager))
        cluster = Cluster(manager, changed, news)
        board = NoticeBoard(journal, changed, news, clock)
        self.around = Surroundings(
            journal=journal,
            board=board,
            manager=manager,
            cluster=cluster,
            migrate=self.migrate,
            abort=self.abort,
            verifier=Verifier(cluster, board, self.look, self.answers, changed, clock, self.limits),
            planner=Planner(lambda _address: self.facts, self.policy),
            limits=self.limits,
            policy=self.policy,
            changed=changed,
            news=news,
            clock=clock,
            give_up=self.die,
        )
        self.controller = Controller(self.around, self.mode)
        threading.Thread(target=self._agents_look, args=(self.alive,), daemon=True).start()

    def crash(self):
        """End the controller as a crash would: whoever wants to write to its journal is no more."""
        self.alive.clear()
        with self.around.changed:
            self.around.journal._writing = self.die
            self.around.journal.close()

    def die(self):
        raise Crash

    def restart(self):
        self.crash()
        self.begin()
        self.controller.resume()

    # what the controller sees

    def look(self, address):
        host = f"host{address.split('.')[-1]}"
        if host in self.silent_hosts:
            return None
        return {guest: places[host] for guest, places in self.where.items() if host in places}

    def answers(self, address):
        return f"guest{address.split('.')[-1]}" not in self.silent_guests

    def migrate(self, order, hear, cancelled):
        """Play migrate.yml: prepare, wait at the gate, move each guest, look at it."""
        self.playbook_runs += 1
        alive, times = self.alive, {"_began": time.time(), "_ended": time.time()}
        destination = {"Prepare the destination": {"guests": [], **times}}
        result = PlaybookResult(0, "successful", Path(), {"destination": destination})
        if self.preparation_fails:
            return PlaybookResult(2, "failed", Path(), {}, [self.preparation_fails])
        if order.gated and (refusal := self._wait_at_gate(order, alive)):
            return PlaybookResult(2, "failed", Path(), {}, [refusal])
        while self.stuck and not cancelled() and order.name not in self.aborted:
            time.sleep(0.005)
        if order.name in self.aborted:
            return PlaybookResult(2, "failed", Path(), {}, ["the moves were given up"])
        moved, verified = [], []
        source = order.migrations[0].source
        for migration in order.migrations:
            guest, ends = migration.guest, {migration.destination: RUNNING}
            said = {"guest": guest, "state": "moved", "elapsed_s": 1.5, "downtime_ms": 20, "error": ""}
            if guest in self.fail:
                said, ends = self.fail[guest](migration)
                if said["state"] != "moved":
                    result.rc = 2
                    result.failures.append(f"{source}: Move {guest}: {said.get('error')}")
            self.where[guest] = ends
            if guest not in self.says_nothing:
                moved.append(said)
                if said["state"] == "moved":
                    verified.append({"guest": guest, "state": "moved", "pin_verified": guest not in self.unpinned})
        result.host_results[source] = {"Wait at the gate and migrate": {"migrations": moved, **times}}
        destination["Verify what has arrived"] = {"migrations": verified, **times}
        for host, tasks in result.host_results.items():
            for task, said in tasks.items():
                hear(host, task, said)
        while self.lingers and alive.is_set():
            time.sleep(0.005)
        result.failures += self.last_words
        return result

    def _wait_at_gate(self, order, alive):
        run = self.controller.run(order.evacuation)
        while not (gate := run.gate(order.attempt)).open and not gate.cancelled and alive.is_set():
            if self.drop_playbook:
                return "the source is unreachable"
            time.sleep(0.005)
        return "" if gate.open else "the gate was cancelled"

    def abort(self, order):
        """Play abort.yml: nothing moves any more."""
        self.aborted.append(order.name)
        return PlaybookResult(0, "successful", Path())

    # what happens

    def alarm(self, host="host1", name="alarm-1", predicted_failure_s=None, job="job-1"):
        evidence = Evidence(0.8, 0.3, 0.01, 9.0, 0.75, predicted_failure_s=predicted_failure_s)
        return self.controller.take_alarm(Alarm(name, time.time(), host, job, "robust", "unavailable", 0.8, evidence))

    def say(self, state, *guests):
        for guest in guests:
            job = self.job_of(guest)
            epoch = self.around.board.notice(job).epoch
            self.around.board.report(guest, GuestReport(job, epoch, state, 1))

    def job_of(self, guest):
        return next(one.job for one in self.manager.membership.guests if one.name == guest)

    def ranks_behave(self, *guests):
        """Let these guests' ranks find every notice and stop, and run again when released."""
        threading.Thread(target=self._behave, args=(guests or tuple(self.where), self.alive), daemon=True).start()

    def _behave(self, guests, alive):
        said = {}
        while alive.is_set():
            for notice in [self.around.board.notice(job.id) for job in self.manager.membership.jobs]:
                closed = notice.epoch in (notice.done, notice.cancelled)
                state = "resumed" if closed else "ready"
                for guest in set(guests) & set(notice.affected):
                    if said.get(guest) != (notice.epoch, state):
                        said[guest] = (notice.epoch, state)
                        self.say(state, guest)
            time.sleep(0.005)

    def _agents_look(self, alive):
        """Let the guests' agents tell of moved guests' root file systems, and reach them, whatever ranks do."""
        while alive.is_set():
            for notice in [self.around.board.notice(job.id) for job in self.manager.membership.jobs]:
                for arrival in notice.arrivals:
                    for guest, state in ((arrival.guest, "root"), (arrival.peer, "reached")):
                        if guest and guest not in self.silent_agents:
                            report = GuestReport(notice.job, notice.epoch, state, 1, arrival.guest)
                            self.around.board.report(guest, report)
            time.sleep(0.005)

    def until(self, what):
        end = time.monotonic() + PATIENCE_S
        while not what():
            assert time.monotonic() < end, "it did not come to this"
            time.sleep(0.005)

    def until_state(self, evacuation, *states):
        run = self.controller.run(evacuation.id)
        self.until(lambda: run.evacuation.state in states)
        with self.around.changed:  # the step that led here is written down
            return run.evacuation


def offered(host, guest):
    """The first device of each kind that a guest needs."""
    return [Device(device.kind, host.devices[device.kind][0]) for device in (guest.devices if guest else [])]


def stays(migration):
    """The guest did not move."""
    return {"guest": migration.guest, "state": "failed", "error": "refused"}, {migration.source: RUNNING}


def half_way(migration):
    """Both hosts have something of the guest."""
    said = {"guest": migration.guest, "state": "failed", "error": "connection lost"}
    return said, {migration.source: OTHER, migration.destination: OTHER}
