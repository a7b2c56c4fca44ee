"""A machine for the display: a real monitor and controller, whose hosts, guests and resource manager are played."""

import contextlib
import json
import math
import random
import socket
import threading
import time

from evacuation_world import World
from fastapi import FastAPI, Response
from services_served import served

from failavoid.controller.api import build_app as controller_app
from failavoid.monitor.service import Monitor
from failavoid.monitor.service import build_app as monitor_app
from failavoid.monitor.settings import Settings
from failavoid.shared.messages import Guest, Host, Job, JobRequest, Membership, MoveProgress, Sample, to_dict
from failavoid.shared.tokens import mint

SECRET = b"s" * 48
TOTAL_KB = 2**21
CORES = 8
INTERVAL_S = 0.2
PATIENCE_S = 20.0


def bearer(role, subject="someone"):
    return {"Authorization": f"Bearer {mint(SECRET, role, subject)}"}


def free_port():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))
        return udp.getsockname()[1]


def playing_manager(membership):
    """The resource manager as far as the monitor asks it; ``membership()`` is what it says."""
    app = FastAPI()

    @app.get("/membership")
    def answer(after: int = -1, timeout: float = 0.0):
        end = time.monotonic() + min(timeout, 1.0)
        while membership().version <= after and time.monotonic() < end:
            time.sleep(0.02)
        # not by FastAPI, which would look at each of ten thousand hosts for longer than anybody waits
        return Response(json.dumps(to_dict(membership())), media_type="application/json")

    return app


class Machine:
    """``used`` is each host's memory in use, which its samples tell of; what is None is silent."""

    def __init__(self, membership, controller_url, manager_url, **settings):
        self.membership = membership
        self.used = {host.name: 0.3 for host in membership().hosts}
        self.settings = Settings(
            listen="127.0.0.1",
            port=free_port(),
            resource_manager=manager_url,
            controller=controller_url,
            **{"interval_s": INTERVAL_S, "stale_s": 2.0, **settings},
        )
        self.monitor = Monitor(self.settings, SECRET)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._sample)

    @contextlib.contextmanager
    def running(self):
        self.monitor.start()
        self._thread.start()
        try:
            yield self
        finally:
            self._stopped.set()
            self._thread.join()
            self.monitor.stop()

    def _sample(self):
        rng = random.Random(1)
        while not self._stopped.wait(self.settings.interval_s):
            now = time.time()
            for host, used in list(self.used.items()):
                if used is not None:
                    share = used + 0.01 * math.sin(now + rng.random())
                    self.monitor.store.take(
                        Sample(
                            host,
                            "host",
                            now,
                            {
                                "mem_total_kb": TOTAL_KB,
                                "mem_available_kb": round(TOTAL_KB * (1 - share)),
                                "mem_active_kb": round(TOTAL_KB * share / 2),
                                "cpu": 0.9,
                            },
                            [rng.uniform(0.7, 1.0) for _ in range(CORES)],
                        ),
                        now,
                    )

    def until(self, what):
        end = time.monotonic() + PATIENCE_S
        while not what():
            assert time.monotonic() < end, "it did not come to this"
            time.sleep(0.02)


class Site(Machine):
    """Five hosts in two racks, a job of six ranks on three of them, and a controller whose moves are played."""

    def __init__(self, world, controller_url, manager_url, **settings):
        super().__init__(lambda: world.manager.membership, controller_url, manager_url, **settings)
        self.world = world

    def far(self, processed, remaining):
        """Have the moves under way as far as this, in MiB."""
        self.world.controller._progress = lambda _address, guests: [
            MoveProgress(guest, processed << 20, remaining << 20) for guest in guests
        ]


@contextlib.contextmanager
def site(folder, mode="act", **settings):
    """(Site, URL of its display)."""
    with (
        surroundings(folder, mode) as (world, controller, manager),
        Site(world, controller, manager, **settings).running() as made,
        served(monitor_app(made.monitor, SECRET)) as url,
    ):
        yield made, url


@contextlib.contextmanager
def surroundings(folder, mode="act"):
    """(World, URL of its controller, URL of its resource manager): what a monitor speaks with."""
    world = World(folder / "controller", mode=mode)
    for number, host in enumerate(world.manager.membership.hosts):
        host.domains = {"rack": "r1" if number < 3 else "r2"}
        host.numa = {"0": list(range(CORES))}
        host.memory_kb = TOTAL_KB
    world.around.cluster.refresh()
    with contextlib.ExitStack() as stack:
        stack.callback(world.alive.clear)
        controller = stack.enter_context(served(controller_app(world.controller, SECRET)))
        manager = stack.enter_context(served(playing_manager(lambda: world.manager.membership)))
        yield world, controller, manager


def many(count, chassis=40, guests_per_host=2, job_hosts=100):
    """The membership of a large machine: jobs of so many hosts, a tenth of it free."""
    hosts, guests, jobs = [], [], []
    for number in range(count):
        name = f"host{number:05d}"
        pool = "free" if number % 10 == 9 else "allocated"
        domains = {"rack": f"r{number // chassis}"}
        hosts.append(
            Host(name, f"10.0.{number >> 8}.{number & 255}", pool, TOTAL_KB, {"0": [*range(CORES)]}, domains=domains)
        )
        if pool == "allocated":
            job = f"job-{number // job_hosts}"
            for place in range(guests_per_host):
                guest = f"g{number * guests_per_host + place:06d}"
                guests.append(Guest(guest, f"uuid-{guest}", name, "", 2**18, [place], 0, "u", "ready", job))
    for number in range(-(-count // job_hosts)):
        mine = [guest.name for guest in guests if guest.job == f"job-{number}"]
        jobs.append(Job(f"job-{number}", JobRequest("u", 1000, 1000, "ssh-ed25519 A", job_hosts), "running", mine))
    return Membership(1, hosts, guests, jobs)
