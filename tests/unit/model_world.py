"""A cluster that is played in one thread at a time, on a clock of its own, around the real controller.

Hosts, movers, agents and the resource manager live on while the controller dies; the journal is what it has left. Each
call that the controller makes passes `Faults.visit`, where it may fail, stay without an answer, or be the last thing
that the controller does.
"""

import dataclasses
import sqlite3
import threading
from contextlib import contextmanager
from pathlib import Path

from failavoid.controller.clock import NEVER, Clock
from failavoid.controller.controller import Controller
from failavoid.controller.journal import Journal
from failavoid.controller.libvirt_view import OTHER, RUNNING, GuestFacts
from failavoid.controller.limits import Limits, Policy
from failavoid.controller.manager import Cluster, ManagerError
from failavoid.controller.notices import NoticeBoard
from failavoid.controller.planning import Planner
from failavoid.controller.surroundings import Surroundings
from failavoid.controller.verification import Verifier
from failavoid.playbook_runner import PlaybookResult
from failavoid.services import Changes
from failavoid.shared.messages import (
    EVACUATION_ENDS,
    Guest,
    GuestReport,
    Host,
    Job,
    JobRequest,
    Lease,
    Membership,
    Placement,
)

BEGINNING = 1_000_000_000.0
LEASE_S = 300.0
OTHERS = "of-others"  # who leases hosts beside the controller
BEFORE, AFTER, KILL_BEFORE, KILL_AFTER = "before", "after", "kill before", "kill after"
KINDS = (BEFORE, AFTER, KILL_BEFORE, KILL_AFTER)


def hosts_of(lease):
    return lease.packed_onto or [lease.host]


class Killed(BaseException):
    """The end of the controller's process, as one of its threads sees it."""


class Task:
    """A thread that runs only while it is told to."""

    def __init__(self, act):
        self.go, self.paused = threading.Semaphore(0), threading.Semaphore(0)
        self.happened, self.until, self.ended, self.killed, self.error = (lambda: True), NEVER, False, False, None
        self.thread = threading.Thread(target=self._run, args=(act,), daemon=True)
        self.thread.start()

    def _run(self, act):
        self.go.acquire()
        try:
            if not self.killed:
                act()
        except Killed:
            pass
        except BaseException as error:
            self.error = error
        self.ended = True
        self.paused.release()

    def resume(self):
        self.go.release()
        self.paused.acquire()
        if self.error:
            raise self.error

    def pause(self):
        self.paused.release()
        self.go.acquire()
        if self.killed:
            raise Killed


class PlayedClock(Clock):
    """Time stands still until all threads wait; then somebody moves it on."""

    def __init__(self):
        super().__init__(threading.Condition())
        self.changed, self.time, self.tasks, self.current = self._changed, BEGINNING, [], None
        self.dead = False  # the controller was killed

    def now(self):
        return self.time

    def sleep(self, seconds):
        self.wait(lambda: False, self.time + seconds)

    def wait(self, happened, until=NEVER):
        task = self.current
        if task is None or happened() or self.time >= until:
            return bool(happened())
        task.happened, task.until = happened, until
        task.pause()
        return bool(happened())

    def start(self, act, name):
        self.tasks.append(Task(act))

    def in_parallel(self, act, names):
        return {name: act(name) for name in names}

    def settle(self):
        """Let every thread run that can, until none can."""
        for _ in range(1000):
            ready = [task for task in self.tasks if task.killed or task.happened() or task.until <= self.time]
            if not ready:
                return
            for task in ready:
                self.current = task
                try:
                    task.resume()
                finally:
                    self.current = None
                if task.ended:
                    self.tasks.remove(task)
                if self.dead:
                    return
        raise AssertionError("threads go round in a circle")

    def next_wake(self):
        return min((task.until for task in self.tasks), default=NEVER)

    def kill(self):
        for task in self.tasks:
            task.killed = True
            task.resume()
        self.tasks = []


class Faults:
    """Calls are counted; that of an armed number goes wrong."""

    def __init__(self):
        self.count, self.armed, self.happened, self.kill = 0, {}, False, lambda: None

    def arm(self, after, kind):
        self.armed[self.count + 1 + after] = kind

    @contextmanager
    def visit(self, error):
        """The effect is the body: ``error`` makes the exception of a call that fails, or whose answer is lost."""
        self.count += 1
        kind = self.armed.pop(self.count, None)
        self.happened = self.happened or kind is not None
        if kind == KILL_BEFORE:
            self.kill()
        if kind == BEFORE:
            raise error()
        yield
        if kind == KILL_AFTER:
            self.kill()
        if kind == AFTER:
            raise error()


class KeptJournal(Journal):
    """The journal of one life; its database is kept for the next. It watches what ranks are told."""

    def __init__(self, kept, faults, now):
        if kept is None:
            super().__init__(":memory:", now)
        else:
            self._now, self._lock, self._db, self.news = now, threading.Lock(), kept, Changes()
        self.faults = faults

    @property
    def database(self):
        return self._db

    @contextmanager
    def _writing(self):
        with self.faults.visit(lambda: sqlite3.OperationalError("disk full")), super()._writing() as db:
            yield db

    def save_notice(self, notice):
        before = next((one for one in self.notices() if one.job == notice.job), None)
        if before and before.epoch > max(before.done, before.cancelled):
            told = (notice.epoch, notice.affected, notice.kind)
            assert told == (before.epoch, before.affected, before.kind), (
                "ranks that are stopped were told another thing"
            )
        if before and before.epoch != notice.epoch:
            assert notice.epoch > max(before.epoch, before.done, before.cancelled), "ranks take this notice for closed"
        super().save_notice(notice)


class PlayedManager:
    """A resource manager by its API; pools, leases and places are its own. A host has ``room`` for so many guests."""

    def __init__(self, world, room):
        self.world, self.version, self.number, self.silent, self.room = world, 1, 0, False, room
        self.leases, self.places, self.suspected, self.unheard = {}, {}, set(), 0
        racks = {"host1": "r1", "host2": "r1", "host3": "r2", "host4": "r1", "host5": "r2", "host6": "r3"}
        self.hosts = {
            name: Host(name, name, "allocated" if name < "host4" else "free", 1, domains={"rack": rack})
            for name, rack in racks.items()
        }
        homes = {
            "a1": "host1",
            "a2": "host1",
            "a3": "host2",
            "a4": "host3",
            "a5": "host2",
            "b1": "host1",
            "b2": "host3",
        }
        self.guests = {
            name: Guest(name, name, host, name, 2**18, [0], 0, "u", "ready", f"job-{name[0]}")
            for name, host in homes.items()
        }
        self.jobs = {
            job: Job(job, JobRequest("u", 1, 1, "k", 1), "running", [g for g in homes if job.endswith(g[0])])
            for job in ("job-a", "job-b")
        }

    @contextmanager
    def _call(self):
        if self.silent:
            raise ManagerError(0, "the resource manager does not answer")
        with self.world.faults.visit(lambda: ManagerError(0, "the answer was lost")):
            yield

    def membership(self, after=-1, timeout=0.0):
        with self._call():
            return self.picture()

    def picture(self):
        known = (self.hosts, self.guests, self.jobs)
        return Membership(self.version, *([dataclasses.replace(one) for one in kind.values()] for kind in known))

    def lease(self, request):
        with self._call():
            self.expire()
            self._all_that_moved_are_known(request.evacuation)
            held = next(
                (
                    one
                    for one in self.leases.values()
                    if one.evacuation == request.evacuation
                    and not set(hosts_of(one)) & set(request.avoid_hosts)
                    and request.host in ("", one.host)
                ),
                None,
            )
            if held is None:
                self.number += 1
                hosts = self._choose(request)
                held = Lease(f"lease-{self.number}", hosts[0], request.evacuation, 0.0)
                held.packed_onto = hosts if len(hosts) > 1 else []
                self.leases[held.id] = held
            held.expires = self.world.clock.time + LEASE_S
            return dataclasses.replace(held)

    def _all_that_moved_are_known(self, name):
        """The next attempt begins where the last has ended: the guests that moved are committed."""
        evacuation = self.world.controller.run(name).evacuation
        for move in evacuation.migrations:
            if move.state == "moved" and move.attempt < evacuation.attempt:
                assert self.guests[move.guest].host != evacuation.host, f"{move.guest} has moved and nobody knows"

    def _choose(self, request):
        leased = {host for lease in self.leases.values() for host in hosts_of(lease)}
        allowed = [
            name
            for name, host in self.hosts.items()
            if name not in request.avoid_hosts
            and f"rack={host.domains['rack']}" not in request.avoid_domains
            and name in (request.packed_onto or [request.host or name])
        ]
        found = [name for name in allowed if self.hosts[name].pool == "free" and name not in leased]
        beside = [one.host for one in self.leases.values() if one.evacuation in request.beside]
        found += [name for name in allowed if name in beside and self._fits(name, request)]
        if found:
            return found[:1]
        homes = []
        if request.pack:
            jobs = {self.guests[name].job for name in request.guests}
            used = {guest.host for guest in self.guests.values() if guest.job in jobs}
            homes = [name for name in allowed if name in used and self.hosts[name].pool != "defunct"]
        for some in [homes] if request.packed_onto else [[home] for home in homes] + [homes]:
            if some and len(some) >= len(request.packed_onto) and (placed := self._spread(some, request.guests)):
                if len(some) > 1:
                    self.places.update({guest: Placement(guest, host, [1], 0) for guest, host in placed.items()})
                return some
        raise ManagerError(409, "there is no spare")

    def _there(self, host):
        there = {guest.name for guest in self.guests.values() if guest.host == host}
        return there | {name for name, place in self.places.items() if place.host == host}

    def _fits(self, host, request):
        return self.hosts[host].pool != "defunct" and len(self._there(host).union(request.guests)) <= self.room

    def _spread(self, hosts, guests):
        placed = {}
        for guest in guests:
            for host in hosts:
                coming = {name for name, place in placed.items() if place == host}
                if len((self._there(host) | coming) - {guest}) < self.room:
                    placed[guest] = host
                    break
        return placed if len(placed) == len(guests) else {}

    def expire(self):
        """Give back the leases whose time is over; not those of hosts that were set aside."""
        for lease in list(self.leases.values()):
            if lease.expires < self.world.clock.time and self.hosts[lease.host].pool != "defunct":
                self._end(lease)

    def _end(self, lease):
        del self.leases[lease.id]
        given_up = set(hosts_of(lease)) - {host for other in self.leases.values() for host in hosts_of(other)}
        self.places = {name: place for name, place in self.places.items() if place.host not in given_up}

    def give_back(self, lease):
        with self._call():
            if lease in self.leases:
                self._end(self.leases[lease])

    def place(self, guests, host):
        with self._call():
            together = {host}.union(*(one.packed_onto for one in self.leases.values() if one.host == host))
            for guest in guests:
                if guest not in self.places or self.places[guest].host not in together:
                    self.places[guest] = Placement(guest, host, [1], 0)
            return [dataclasses.replace(self.places[guest]) for guest in guests]

    def commit(self, lease, placements):
        with self._call():
            if lease not in self.leases:
                raise ManagerError(404, "there is no such lease")
            held = self.leases[lease]
            for placed in placements:
                assert self.world.where[placed.guest] == {placed.host: RUNNING}, (
                    "a guest that is not there was committed"
                )
                assert placed.host in hosts_of(held)
                self.guests[placed.guest].host = placed.host
                self.places.pop(placed.guest, None)
            for placed in placements:
                self.hosts[placed.host].pool = "allocated"
            self._end(held)
            self.version += 1

    def suspect(self, host, reason, evacuation, job):
        with self._call():
            self.suspected.add(host)

    def trust(self, host):
        with self._call():
            self.suspected.discard(host)

    def retire(self, host, reason, evacuation="", job=""):
        with self._call():
            if any(guest.host == host and guest.job for guest in self.guests.values()):
                raise ManagerError(409, "it still has guests of jobs")
            self.hosts[host].pool = "defunct"
            self.version += 1

    def others_take_what_is_free(self):
        """Somebody else leases whatever nobody has."""
        for name, host in self.hosts.items():
            if host.pool == "free" and name not in {lease.host for lease in self.leases.values()}:
                self.leases[name] = Lease(name, name, OTHERS, NEVER)

    def end_job(self, job):
        """A job completes: its guests are nobody's, its hosts are free if nobody else is there."""
        self.jobs[job].state = "completed"
        for guest in self.guests.values():
            if guest.job == job:
                guest.job = None
        for host in self.hosts.values():
            if host.pool == "allocated" and not any(g.host == host.name and g.job for g in self.guests.values()):
                host.pool = "free"
        self.version += 1


class Mover:
    """The module at the gate on the source host, and the process that moves: both outlive the controller."""

    def __init__(self, order):
        self.order, self.states, self.aborted, self.ended = order, {}, False, False


class ModelWorld:
    """Everything; a life of the controller can be ended and begun at any time."""

    def __init__(self, mode="act", policy=None, on_deadline="migrate", room=4):
        self.mode, self.policy = mode, policy or Policy(attempts=2)
        self.limits = Limits(on_deadline=on_deadline)
        self.clock, self.faults = PlayedClock(), Faults()
        self.faults.kill = self.die
        self.manager = PlayedManager(self, room)
        self.where = {name: {guest.host: RUNNING} for name, guest in self.manager.guests.items()}
        self.silent, self.movers, self.granted, self.devices = set(), {}, set(), {}
        self.said, self.kept, self.controller, self.alarms = set(), None, None, 0
        self.blind = False  # agents say nothing of guests that have moved
        self.begin()

    # -- lives of the controller -----------------------------------------------------------------------------

    def begin(self):
        if self.controller is not None:
            return
        journal = KeptJournal(self.kept, self.faults, self.clock.now)
        self.kept, changed, news = journal.database, self.clock.changed, Changes()
        cluster = Cluster(self.manager, changed, news)
        board = NoticeBoard(journal, changed, news, self.clock)
        self.around = Surroundings(
            journal=journal,
            board=board,
            manager=self.manager,
            cluster=cluster,
            migrate=self.migrate,
            abort=self.abort,
            verifier=Verifier(cluster, board, self.look, lambda _address: True, changed, self.clock, self.limits),
            planner=Planner(
                lambda _address: {name: GuestFacts(found) for name, found in self.devices.items()}, self.policy
            ),
            limits=self.limits,
            policy=self.policy,
            changed=changed,
            news=news,
            clock=self.clock,
            give_up=self.die,
        )
        self.controller = Controller(self.around, self.mode)
        with self.lives():
            self.controller.resume()
            self.poll_gates()  # who waits there asks a new life before its threads have done anything

    def die(self):
        self.clock.dead = True
        raise Killed

    def kill(self):
        self.controller = None
        self.clock.kill()
        self.clock.dead = False

    @contextmanager
    def lives(self):
        """Within, the controller may be killed; nothing happens while there is none."""
        try:
            yield
        except (Killed, sqlite3.Error):
            self.kill()
        except ManagerError:
            pass  # asked again later

    def settle(self):
        """Let the controller and the hosts do what they can do now."""
        for _ in range(100):
            if self.controller is None:
                return
            known = self.around.cluster.membership
            if not self.manager.silent and (known is None or known.version != self.manager.version):
                self.around.cluster._take(self.manager.picture())
            before = self.faults.count
            self.clock.settle()
            if self.clock.dead:
                self.kill()
                return
            if not self.poll_gates() and before == self.faults.count:
                return

    # -- what the controller works with ----------------------------------------------------------------------

    def look(self, address):
        if address in self.silent:
            return None
        return {guest: places[address] for guest, places in self.where.items() if address in places}

    def facts(self, address):
        return None if address in self.silent else {name: GuestFacts(found) for name, found in self.devices.items()}

    def migrate(self, order, hear, cancelled):
        with self.faults.visit(lambda: OSError("no memory")):
            destinations = {m.guest: m.destination for m in order.migrations}
            if unreachable := self.silent & set(destinations.values()):
                return failed(f"{unreachable} can't be reached")
            mover = self.movers.setdefault(order.name, Mover(order))
        self.clock.wait(lambda: mover.ended or cancelled())
        source = order.migrations[0].source
        words = [{"guest": guest, "state": state} for guest, state in mover.states.items()] if mover.ended else []
        seen = [{**said, "pin_verified": True} for said in words if said["state"] == "moved"]
        if source in self.silent:
            words = []
        moved = len(seen) == len(order.migrations)
        result = PlaybookResult(0 if moved else 2, "successful" if moved else "failed", Path())
        result.failures = [] if moved else ["not all guests have moved"]
        result.host_results = {
            source: {"Wait at the gate and migrate": {"migrations": words}},
            **{
                host: {
                    "Verify what has arrived": {
                        "migrations": [one for one in seen if destinations[one["guest"]] == host]
                    }
                }
                for host in (destinations.values() if words else ())
            },
        }
        for host, tasks in result.host_results.items():
            for task, said in tasks.items():
                hear(host, task, said)
        return result

    def abort(self, order):
        with self.faults.visit(lambda: OSError("no memory")):
            if order.migrations[0].source in self.silent:
                return failed("the source can't be reached")
            mover = self.movers.setdefault(order.name, Mover(order))
            mover.aborted = True
            for guest, state in mover.states.items():
                if state == "running":
                    self._end_move(mover, guest, "cancelled")
            mover.ended = True
            words = [{"guest": guest, "state": state} for guest, state in mover.states.items()]
        return PlaybookResult(0, "successful", Path(), {"source": {"Give up": {"migrations": words}}})

    # -- what happens by itself ------------------------------------------------------------------------------

    def poll_gates(self):
        """Let the modules at the gate see how it stands; whether anything came of it."""
        news = False
        for mover in self.movers.values():
            order = mover.order
            source = order.migrations[0].source
            if mover.ended or mover.states or self.controller is None or source in self.silent:
                continue
            gate = self.controller.run(order.evacuation).gate(order.attempt)
            if gate.cancelled:
                mover.ended = news = True
            elif gate.open:
                self._start(mover)
                news = True
        return news

    def _start(self, mover):
        order = mover.order
        evacuation = self.controller.run(order.evacuation).evacuation
        assert order.evacuation not in self.granted, "guests move after a cancellation was granted"
        assert evacuation.kind == "move", "guests move that were to stay"
        assert not evacuation.needs_confirmation or evacuation.confirmed_by, "guests move that nobody confirmed"
        for migration in order.migrations:
            guest, source, destination = migration.guest, migration.source, migration.destination
            leases = {(one.evacuation, host) for one in self.manager.leases.values() for host in hosts_of(one)}
            assert (order.evacuation, destination) in leases, "a guest moves to a host that is not leased"
            if self.where[guest] != {source: RUNNING}:
                mover.states[guest] = "failed"
                continue
            mover.states[guest] = "running"
            self.where[guest] = {source: RUNNING, destination: OTHER}

    def moving(self):
        return [(mover, guest) for mover in self.movers.values() for guest, s in mover.states.items() if s == "running"]

    def end_move(self, number, how):
        """One of the moves under way comes to an end."""
        moving = self.moving()
        if moving:
            mover, guest = moving[number % len(moving)]
            self._end_move(mover, guest, how)

    def _end_move(self, mover, guest, how):
        migration = next(m for m in mover.order.migrations if m.guest == guest)
        destination = migration.destination
        if destination in self.silent and how == "moved":
            how = "failed"
        mover.states[guest] = how
        self.where[guest] = {destination if how == "moved" else migration.source: RUNNING}
        mover.ended = all(state != "running" for state in mover.states.values())

    def _has_guests(self, host):
        """Whether guests run there, also those of jobs that have ended."""
        return any(places.get(host) == RUNNING for places in self.where.values())

    def host_fails(self, host):
        """A host without guests of its own fails: what moves there stays where it is, and it never answers again."""
        if self._has_guests(host):
            return
        for mover, guest in self.moving():
            if host in self.where[guest]:
                self._end_move(mover, guest, "failed")
        self.silent.add(host)

    def agents_speak(self, chosen):
        """Let the ranks and agents of the chosen guests do what their job's notice asks for now."""
        for guest in chosen:
            job = self.manager.guests[guest].job
            if self.controller is None or job is None:
                continue
            with self.lives():
                notice = self.around.board.notice(job)
                closed = notice.epoch <= max(notice.done, notice.cancelled)
                if guest in notice.affected:
                    self._say(guest, job, notice.epoch, "resumed" if closed else "ready")
                for arrival in notice.arrivals if not self.blind else []:
                    if guest == arrival.guest:
                        self._say(guest, job, notice.epoch, "root")
                    if guest == arrival.peer:
                        self._say(guest, job, notice.epoch, "reached", arrival.guest)

    def _say(self, guest, job, epoch, state, about=""):
        if (guest, job, epoch, state, about) not in self.said:
            self.around.board.report(guest, GuestReport(job, epoch, state, 1, about))
            self.said.add((guest, job, epoch, state, about))

    def advance(self, seconds=None):
        """Move time on, to where somebody's wait is over or by so many seconds."""
        wake = self.clock.next_wake()
        if seconds is not None:
            self.clock.time += seconds
        elif wake != NEVER:
            self.clock.time = max(self.clock.time, wake)
        self.manager.expire()  # who is silent may go on all the same

    # -- the end ---------------------------------------------------------------------------------------------

    def heal_and_finish(self):
        """Nothing goes wrong any more: everything must come to an end."""
        self.faults.armed.clear()
        self.manager.silent = False
        self.silent = {host for host in self.silent if not self._has_guests(host)}  # others were silent for a while
        self.begin()
        for _ in range(400):
            self.settle()
            for evacuation in self.controller.evacuations():
                if evacuation.needs_confirmation and not evacuation.confirmed_by:
                    self.controller.run(evacuation.id).confirm("ada")
            for mover, guest in self.moving():
                self._end_move(mover, guest, "moved")
            self.agents_speak(self.where)
            self.settle()
            if not self.clock.tasks:
                return
            self.advance()

    def check_that_guests_run_once(self):
        for guest, places in self.where.items():
            assert list(places.values()).count(RUNNING) == 1, f"{guest} runs {places}"

    def check_the_end(self):
        """Nothing is left of what the evacuations have begun, and it is known where every guest is."""
        assert self.open() == [], "an evacuation does not come to an end"
        for job in ("job-a", "job-b"):
            assert not self.around.board.is_open(job), "ranks stay stopped"
        evacuations = self.controller.evacuations()
        failed = [e for e in evacuations if e.state == "FAILED"]
        unclear = {m.guest for e in failed for m in e.migrations if m.state == "running" and m.attempt == e.attempt}
        # the lease expired while nobody could renew it, and somebody else has the host: a person must decide
        unclear |= {m.guest for e in failed if "could not tell where" in e.error for m in e.migrations}
        for name, guest in self.manager.guests.items():
            if name not in unclear and guest.job:
                assert self.where[name] == {guest.host: RUNNING}, f"{name} is thought to be on {guest.host}"
        aside = {name for name, host in self.manager.hosts.items() if host.pool == "defunct"}
        if not self.faults.happened:
            # a host with guests of its own is not set aside: the place of one that may be there ends with the lease
            shared = {e.id for e in failed if e.packed_onto or "could not keep" in e.error}
            expiring = {e.id for e in failed if e.id in shared and unclear & {m.guest for m in e.migrations}}
            mine = [lease for lease in self.manager.leases.values() if lease.evacuation not in {OTHERS, *expiring}]
            leases = [lease for lease in mine if lease.host not in aside]
            assert leases == [], "a lease leaks"
        for evacuation in evacuations:
            if evacuation.state in ("RETIRED", "MOVED"):
                guests = [m.guest for m in evacuation.migrations if self.manager.guests[m.guest].job]
                left = [guest for guest in guests if self.where[guest] == {evacuation.host: RUNNING}]
                assert not left or evacuation.host not in aside, f"{left} are on a host that was retired"

    def open(self):
        return [e.id for e in self.controller.evacuations() if e.state not in EVACUATION_ENDS]


def failed(words):
    """A playbook that failed without having done anything."""
    return PlaybookResult(2, "failed", Path(), {}, [words])
