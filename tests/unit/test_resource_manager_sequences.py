"""Whatever is asked of the resource manager, in whatever order, and wherever it is killed: nothing is given twice,
nothing is lost.

Playbooks and libvirt are played; what would be done in threads of their own is done at once, or where `slow` is chosen
much later: then what else is asked meanwhile must find everything in order too.
"""

import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from resource_manager_site import KEY, OPERATOR, SERVICE, Site, bearer
from sequences import tried

from failavoid.resource_manager import background, jobs
from failavoid.resource_manager.settings import HostSettings, WarmPool
from failavoid.resource_manager.state import ENDED
from failavoid.shared.messages import POOLS

HOSTS = [f"host{n}" for n in range(1, 7)]
SPARE = "host6"
names = st.sampled_from(HOSTS)
USERS = {"ada": 1000, "bob": 1001}
CAN_WAIT = ("clear host", "make room for", "remove guests of", "retire")  # threads that nobody waits for


class Killed(BaseException):
    """The service ends here, as by kill -9: whatever has not been written is gone."""


class Sequences(RuleBasedStateMachine):
    """A site and what it was told: the drained hosts, the open evacuations, those hosts that a commit filled."""

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir="/dev/shm"))
        self.patch = pytest.MonkeyPatch()
        self.drained, self.evacuations, self.filled, self.killed = set(), {}, set(), set()
        self.number = 0
        self.kill_in_launch = False
        self.put_off = []

    @initialize(classes=st.booleans(), warm=st.booleans(), relocates=st.booleans(), slow=st.booleans())
    def begin(self, classes, warm, relocates, slow):
        self.slow = slow
        self.patch.setattr(background, "start", self.at_once)
        self.patch.setattr(jobs, "ASSIGN_S", 0.0)
        self.site = Site(self.folder, self.patch, hosts=len(HOSTS), share_cores=False)
        self.site.settings.hosts = [
            HostSettings(
                name,
                f"10.0.0.{number}",
                (1024 if number % 2 else 2048) * 1024,  # memory is short on some, cores on others
                {"0": [0, 1], "1": [2]} if name != SPARE else {"0": [0, 1]},
                hardware_class="new" if classes and number in (4, 5) else "old",
                reserved_spare=name == SPARE,
            )
            for number, name in enumerate(HOSTS, 1)
        ]
        self.site.settings.compatible = {"new": ["old"]}
        self.site.settings.warm_pools = [WarmPool(5, per_host=4), WarmPool(1, user="bob")] if warm else []
        self.site.settings.relocate_warm = "always" if relocates else "never"
        self.play = self.site.play
        self.patch.setattr("failavoid.resource_manager.guests.run_playbook", self.perhaps)
        self.restart()
        # something to evacuate, and guests that an ended job has left: few sequences would come to that by chance
        self.submit("ada", 1, 1, 1, 262144, "", "")
        self.end_of(self.live()[0], 0)
        self.submit("bob", 1, 2, 1, 262144, "", "")

    def teardown(self):
        self.patch.undo()
        shutil.rmtree(self.folder)

    def at_once(self, name, act, *words):
        if self.slow and name.startswith(CAN_WAIT):
            self.put_off.append((act, words))
            return
        try:
            act(*words)
        except Killed:
            self.dying = True

    def perhaps(self, playbook, inventory, variables, *words, **named):
        for guest in variables.get("launch_guests", []):
            self.check_that_there_is_memory(guest)
        result = self.play(playbook, inventory, variables, *words, **named)
        if playbook == "launch.yml" and self.kill_in_launch:
            self.kill_in_launch = False
            raise Killed
        return result

    def check_that_there_is_memory(self, coming):
        """What runs counts, also what was given up and has not been removed yet."""
        host = next(one for one in self.site.settings.hosts if one.name == coming["host"])
        there = {**self.site.running[host.address], coming["uuid"]: coming}
        memory = sum(guest["memory_kb"] for guest in there.values())
        assert memory <= host.memory_kb - self.site.settings.reserve_kb, f"{sorted(there)} on {host.name}"

    def restart(self):
        self.dying, self.put_off = False, []
        self.site.start()
        self.site.manager.recover()

    def ask(self, path, body=None, headers=SERVICE, method="POST"):
        answer = self.site.api.request(method, path, json=body or {}, headers=headers)
        assert answer.status_code < 500, answer.text
        if self.dying:
            self.restart()
        return answer.json() if answer.status_code == 200 else None

    def picture(self):
        return self.site.store.membership()

    def guests(self, job=None):
        return {guest.name: guest for guest in self.picture().guests if job in (None, guest.job)}

    def live(self):
        return [job.id for job in self.picture().jobs if job.state not in ENDED]

    def to_be_kept(self):
        """The picture but for guests that were given up: those are removed after a restart."""
        known = self.picture()
        return known.hosts, known.jobs, [guest for guest in known.guests if guest.job or guest.state != "lost"]

    def marked(self):
        return sorted(host.name for host in self.picture().hosts if host.marks)

    # -- jobs ------------------------------------------------------------------------------------------------------

    @rule(
        user=st.sampled_from(sorted(USERS)),
        hosts=st.sampled_from([1, 1, 2, 3]),
        per_host=st.sampled_from([1, 2, 3]),
        vcpus=st.sampled_from([1, 1, 2]),
        memory=st.sampled_from([262144, 393216]),
        resource=st.sampled_from(["", "", "hosts"]),
        trouble=st.sampled_from(["", "", "", "fails", "killed", "stays"]),
    )
    def submit(self, user, hosts, per_host, vcpus, memory, resource, trouble):
        usable = {host.name for host in self.picture().hosts if host.pool == "free" and not host.marks}
        if trouble == "fails":
            self.site.fail["launch.yml"] = ["host: Kernel panic"]
        self.kill_in_launch = trouble == "killed"
        self.site.stay = set(self.guests()) if trouble == "stays" else set()
        job = self.ask(
            "/jobs",
            {
                "user": user,
                "uid": USERS[user],
                "gid": 1000,
                "public_key": KEY,
                "hosts": hosts,
                "guests_per_host": per_host,
                "guest_vcpus": vcpus,
                "guest_memory_kb": memory,
                "resource": resource,
            },
            bearer("user", user),
        )
        self.site.fail.clear()
        self.kill_in_launch = False
        if job is None:
            return
        guests = self.guests(job["id"])
        given = {guest.host for guest in guests.values()} | set(job["hosts"])
        assert given <= usable - {SPARE}, "a host that was not free was given"
        assert {guest.user for guest in guests.values()} <= {user}
        assert self.site.job(job["id"]).state in ("ready", "failed")

    @precondition(lambda self: self.live())
    @rule(data=st.data(), status=st.sampled_from([0, 1]))
    def end(self, data, status):
        self.end_of(data.draw(st.sampled_from(self.live())), status)

    def end_of(self, job, status):
        self.site.end(job, status, headers=OPERATOR)

    @precondition(lambda self: self.live())
    @rule(data=st.data())
    def client_is_killed(self, data):
        ident = data.draw(st.sampled_from(self.live()))
        self.site.manager.heartbeats._heard[ident] = -1e9
        self.site.manager.end_silent_jobs()
        assert "was not heard" in self.site.job(ident).message

    @precondition(lambda self: any(self.site.running.values()))
    @rule(data=st.data())
    def guest_dies(self, data):
        address = data.draw(st.sampled_from(sorted(a for a, guests in self.site.running.items() if guests)))
        uuid = data.draw(st.sampled_from(sorted(self.site.running[address])))
        self.site.running[address].pop(uuid)
        for _ in range(2):
            self.site.watch.once()

    @rule()
    def fill_warm_pools(self):
        self.site.manager.warm_pools.once()

    @rule()
    def look(self):
        self.site.watch.once()

    @precondition(lambda self: self.put_off)
    @rule(killed=st.booleans())
    def what_could_wait_is_done(self, killed):
        if killed:
            self.restart()  # it was forgotten, and is begun anew
        acts, self.put_off = self.put_off, []
        for act, words in acts:
            act(*words)

    # -- evacuations -----------------------------------------------------------------------------------------------

    def hosts_in_use(self):
        return sorted({guest.host for guest in self.guests().values() if guest.job and guest.state != "lost"})

    @precondition(lambda self: self.hosts_in_use())
    @rule(
        data=st.data(),
        named=st.booleans(),
        to=st.sampled_from(["", "", *HOSTS]),  # left to itself the resource manager takes empty hosts
        then=st.sampled_from(["moves", "is given back", "expires", "goes on later"]),
    )
    def evacuate(self, data, named, to, then):
        host = data.draw(st.sampled_from(self.hosts_in_use()))
        guests = [g.name for g in self.guests().values() if g.host == host and g.job and g.state != "lost"]
        self.number += 1
        wanted = {"evacuation": f"e-{self.number}", "host": to, "guests": guests if named else []}
        lease = self.ask("/leases", wanted)
        if lease is None:
            return
        placed = self.ask("/placements", {"guests": guests, "host": lease["host"]})
        assert placed is not None or not named, "a spare was leased that has no room for the guests that come"
        self.evacuations[lease["id"]] = lease["host"], placed
        if then == "moves":
            self.commit(lease["id"])
        elif then == "is given back":
            self.give_back(lease["id"])
        elif then == "expires":
            self.expire()

    @precondition(lambda self: self.evacuations)
    @rule(data=st.data())
    def go_on(self, data):
        self.commit(data.draw(st.sampled_from(sorted(self.evacuations))))

    def commit(self, lease):
        """The guests move, unless there is nowhere to go or one has gone meanwhile."""
        host, placements = self.evacuations[lease]
        guests = self.guests()
        if not placements or any(placed["guest"] not in guests for placed in placements):
            self.give_back(lease)
            return
        for placed in placements:
            guest = guests[placed["guest"]]
            domain = self.site.running[self.site.address(guest.host)].pop(guest.uuid, None)
            if domain:
                self.site.running[self.site.address(host)][guest.uuid] = domain
        self.ask(f"/leases/{lease}/commit", {"placements": placements})
        self.filled.add(host)
        del self.evacuations[lease]

    @precondition(lambda self: self.evacuations)
    @rule(data=st.data(), expires=st.booleans())
    def withdraw(self, data, expires):
        if expires:
            self.expire()
        else:
            self.give_back(data.draw(st.sampled_from(sorted(self.evacuations))))

    def expire(self):
        self.site.manager.expire_leases(time.time() + 1e6)
        with self.site.store.view() as state:
            self.evacuations = {lease: told for lease, told in self.evacuations.items() if lease in state.leases}

    def give_back(self, lease):
        self.ask(f"/leases/{lease}", method="DELETE")
        del self.evacuations[lease]

    # -- hosts -----------------------------------------------------------------------------------------------------

    # few, or the jobs would have nowhere to go
    @precondition(lambda self: len(self.marked()) < 2)
    @rule(host=names)
    def drain(self, host):
        assert self.ask(f"/hosts/{host}/drain", {"reason": "by a person"}, OPERATOR)
        self.drained.add(host)

    @precondition(lambda self: len(self.marked()) < 2)
    @rule(host=names, act=st.sampled_from(["suspect", "retire"]), headers=st.sampled_from([SERVICE, OPERATOR]))
    def mark(self, host, act, headers):
        self.ask(f"/hosts/{host}/{act}", {"reason": "words"}, headers)

    @precondition(lambda self: self.marked())
    @rule(data=st.data(), headers=st.sampled_from([SERVICE, OPERATOR]))
    def trust(self, data, headers):
        host = data.draw(st.sampled_from(self.marked()))
        self.ask(f"/hosts/{host}/suspect", None, headers, "DELETE")

    @precondition(lambda self: self.marked())
    @rule(data=st.data(), sound=st.sampled_from([True, True, True, False]))
    def restore(self, data, sound):
        host = data.draw(st.sampled_from(self.marked()))
        self.site.fail["restore.yml"] = "" if sound else "it smokes"
        leases = [lease for lease, told in self.evacuations.items() if told[0] == host]
        if self.ask(f"/hosts/{host}/restore", None, OPERATOR) is not None:
            assert sound
            self.drained.discard(host)
            with self.site.store.view() as state:
                for lease in leases:
                    if lease not in state.leases:
                        del self.evacuations[lease]

    @rule()
    def kill_and_restart(self):
        before = self.to_be_kept()
        self.restart()
        assert self.to_be_kept() == before

    # -- what holds always -----------------------------------------------------------------------------------------

    @invariant()
    def every_host_is_in_the_pool_that_its_marks_and_jobs_say(self):
        live, jobs_on = set(self.live()), Counter()
        for guest in self.guests().values():
            assert guest.job is None or guest.job in live, f"{guest.name} belongs to {guest.job}, which has ended"
            jobs_on[guest.host] += guest.job is not None
        for job in self.picture().jobs:
            jobs_on.update(job.hosts if job.id in live else [])
        for host in self.picture().hosts:
            kinds = {mark.kind for mark in host.marks}
            assert host.pool in POOLS
            assert (host.pool == "defunct") == ("retired" in kinds)
            if host.pool != "defunct":
                assert (host.pool == "allocated") == (jobs_on[host.name] > 0)
                assert (host.pool == "suspect") == (bool(kinds) and not jobs_on[host.name])

    @invariant()
    def no_core_and_no_byte_is_given_twice(self):
        with self.site.store.view() as state:
            for host in state.hosts.values():
                there = {g.name: g for g in state.guests_on(host.name) if g.state != "lost"}
                coming = {n: p for n, p in state.reserved.items() if p.host == host.name and n not in there}
                cores = Counter(core for guest in there.values() for core in guest.cores)
                cores.update(core for placed in coming.values() for core in placed.cores)
                assert all(count == 1 for count in cores.values()), f"{host.name}: {cores}"
                held = {**there, **{name: state.guests[name] for name in coming}}
                memory = sum(guest.memory_kb for guest in held.values())
                assert memory <= host.memory_kb - self.site.settings.reserve_kb
                bare = [job.id for job in state.jobs.values() if job.state not in ENDED and host.name in job.hosts]
                assert len(bare) + bool(there) <= 1, f"{host.name} is {bare}'s alone, and has {sorted(there)}"

    @invariant()
    def no_lease_and_no_place_leaks(self):
        with self.site.store.view() as state:
            assert set(state.leases) == set(self.evacuations)
            assert {placed.host for placed in state.reserved.values()} <= state.leased()
            assert set(state.reserved) <= set(state.guests)
            assert len(state.leased()) == len(state.leases)

    @invariant()
    def a_host_that_was_given_away_is_rid_of_idle_guests(self):
        """Their memory and cores are the job's, or those of guests that come: nobody else gets them from then on."""
        with self.site.store.view() as state:
            taken = state.leased() | {host.name for host in state.hosts.values() if host.pool == "allocated"}
            idle = {g.name: g.state for g in state.guests.values() if g.job is None and g.host in taken}
        assert set(idle.values()) <= {"lost"}, f"{idle} may be given to a job while others have their hosts"
        assert self.put_off or not idle, f"{sorted(idle)} stay on hosts that others have"

    @invariant()
    def what_a_person_has_drained_stays_drained(self):
        marked = {h.name for h in self.picture().hosts for m in h.marks if m.kind == "drained"}
        assert marked == self.drained

    @invariant()
    def the_reserved_spare_takes_guests_of_evacuations_alone(self):
        there = [guest for guest in self.guests().values() if guest.host == SPARE]
        assert not there or SPARE in self.filled

    @invariant()
    def what_runs_is_known(self):
        known = {guest.uuid for guest in self.guests().values()}
        running = {uuid for guests in self.site.running.values() for uuid in guests}
        assert running <= known, f"{running - known} run and nobody knows"

    @invariant()
    def guests_of_a_job_are_on_hosts_that_can_run_them(self):
        classes = {host.name: host.hardware_class for host in self.picture().hosts}
        for guest in self.guests().values():
            assert (classes[guest.host], guest.hardware_class) != ("old", "new"), guest


TestSequences = Sequences.TestCase
TestSequences.settings = tried(usually=12, steps=30)
