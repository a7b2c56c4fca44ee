"""The resource manager's process: its API, and the threads behind it."""

from __future__ import annotations

import argparse
import logging
import re
import sqlite3
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException

from failavoid import services
from failavoid.documents import After, Document, Nothing, Timeout
from failavoid.resource_manager import leases, placement
from failavoid.resource_manager.launch import ENDED, Launcher, LaunchError
from failavoid.resource_manager.settings import Settings
from failavoid.resource_manager.store import State, Store
from failavoid.resource_manager.watch import Watch
from failavoid.services import require
from failavoid.shared.messages import (
    POLICIES,
    Commit,
    Host,
    Job,
    JobEnded,
    JobRequest,
    JobStarted,
    Lease,
    LeaseRequest,
    Membership,
    Placement,
    PlacementRequest,
    Reason,
    to_dict,
)
from failavoid.shared.names import check_name
from failavoid.shared.tokens import Identity, read_secret

log = logging.getLogger(__name__)

# A user's key becomes a variable of a playbook, where "{{" would be a template: nothing but a key passes.
_PUBLIC_KEY = re.compile(r"(ssh-(ed25519|rsa)|ecdsa-sha2-nistp\d+) [A-Za-z0-9+/]+=* ?[A-Za-z0-9_.@+-]*")


def take_hosts(store: Store, settings: Settings) -> None:
    """Bring the state's hosts in line with the settings; pools and reasons stay."""
    declared = {host.name: host for host in settings.hosts}
    with store.change() as state:
        for name, host in declared.items():
            known = state.hosts.setdefault(name, Host(name, host.address))
            known.address, known.memory_kb, known.numa = host.address, host.memory_kb, host.numa
        used = {guest.host for guest in state.guests.values() if guest.job}
        for name in [name for name in state.hosts if name not in declared]:
            if name in used:
                state.hosts[name].pool, state.hosts[name].reason = "defunct", "not in the settings any more"
                continue
            del state.hosts[name]
            for guest in [guest.name for guest in state.guests.values() if guest.host == name]:
                state.forget(guest)


def make_api(settings: Settings, store: Store, launcher: Launcher, watch: Watch, secret: bytes) -> FastAPI:
    """Make the API of docs/architecture.md."""
    app = services.make_app("failavoid resource manager", secret)
    machines = {host.name: host.machine for host in settings.hosts}
    acting: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)  # one playbook a host at a time

    def job_of(ident: str, caller: Identity | None = None) -> Job:
        """The job; a user who wants to change it must be its own. Raises HTTPException."""
        job = next((job for job in store.membership().jobs if job.id == ident), None)
        if job is None:
            raise HTTPException(404, f"there is no job {ident}")
        if caller is not None and caller.role == "user" and caller.subject != job.request.user:
            raise HTTPException(403, f"job {ident} is {job.request.user}'s")
        return job

    def host_of(state: State, name: str) -> Host:
        if name not in state.hosts:
            raise HTTPException(404, f"there is no host {name}")
        return state.hosts[name]

    @app.get("/membership", response_model=Membership)
    async def membership(after: After = -1, timeout: Timeout = 0.0, _caller: Identity = require()) -> dict[str, Any]:
        # a number from another life of this service is answered at once
        if store.changes.version >= after >= 0 and timeout > 0:
            await store.changes.wait(after, min(timeout, 60.0))
        picture = store.membership()
        warnings = placement.warnings(picture.guests, machines)
        for host in picture.hosts:
            host.warnings = warnings.get(host.name, [])
        return to_dict(picture)

    # -- jobs --------------------------------------------------------------------------------------------------

    @app.post("/jobs", response_model=Job)
    def submit(request: Document[JobRequest], caller: Identity = require("user", "operator")) -> dict[str, Any]:
        check_request(request, caller)
        ident = check_name("job", f"{request.name}-{store.next_number('job')}")
        try:
            job = launcher.allocate(ident, request)
        except placement.NoRoomError as error:
            raise HTTPException(409, str(error)) from error
        except LaunchError as error:
            raise HTTPException(503, str(error)) from error
        log.info("job %s of %s: %d guests", ident, request.user, len(job.guests))
        in_background(f"launch {ident}", launcher.launch, ident)
        return to_dict(job)

    @app.get("/jobs/{ident}", response_model=Job)
    def show_job(ident: str, _caller: Identity = require()) -> dict[str, Any]:
        return to_dict(job_of(ident))

    @app.post("/jobs/{ident}/started", response_model=Job)
    def started(
        ident: str, said: Document[JobStarted], caller: Identity = require("user", "operator")
    ) -> dict[str, Any]:
        job_of(ident, caller)
        with store.change() as state:
            job = state.jobs[ident]
            if job.state not in ("ready", "running"):
                raise HTTPException(409, f"job {ident} is {job.state} {job.message}".strip())
            job.state, job.started = "running", time.time()
            job.command = said.command
            return to_dict(job)

    @app.post("/jobs/{ident}/ended", response_model=Job)
    def ended(ident: str, said: Document[JobEnded], caller: Identity = require("user", "operator")) -> dict[str, Any]:
        job = job_of(ident, caller)
        status, message = said.exit_status, said.message
        if status != 0 and job.state not in ENDED:
            message = watch.why_ended(ident) or message
        launcher.end(ident, "completed" if status == 0 else "failed", status, message)
        return to_dict(job_of(ident))

    @app.delete("/guests/{name}", response_model=Nothing)
    def remove_guest(name: str, _caller: Identity = require("operator")) -> dict[str, Any]:
        guest = next((guest for guest in store.membership().guests if guest.name == name), None)
        if guest is None:
            raise HTTPException(404, f"there is no guest {name}")
        if guest.job:
            raise HTTPException(409, f"guest {name} belongs to job {guest.job}: end the job first")
        try:
            launcher.remove([name])
        except LaunchError as error:
            raise HTTPException(502, str(error)) from error
        return {}

    # -- evacuations -------------------------------------------------------------------------------------------

    @app.post("/leases", response_model=Lease)
    def lease(asked: Document[LeaseRequest], _caller: Identity = require("service")) -> dict[str, Any]:
        evacuation = check_name("evacuation", asked.evacuation)
        number = store.next_number("lease")
        try:
            with store.change() as state:
                taken = leases.take(state, evacuation, settings.lease_s, number)
                answer = to_dict(taken)
        except placement.NoRoomError as error:
            raise HTTPException(409, str(error)) from error
        if taken.id == f"lease-{number}" and (idle := launcher.idle_on({taken.host})):
            in_background(f"clear {taken.host}", remove_idle, taken.host, idle)
        return answer

    @app.delete("/leases/{ident}", response_model=Nothing)
    def give_back(ident: str, _caller: Identity = require("service")) -> dict[str, Any]:
        with store.change() as state:
            if ident not in state.leases:
                raise HTTPException(404, f"there is no lease {ident}")
            leases.give_back(state, state.leases[ident])
        return {}

    @app.post("/placements", response_model=list[Placement])
    def place(asked: Document[PlacementRequest], _caller: Identity = require("service")) -> list[dict[str, Any]]:
        try:
            with store.change() as state:
                placed = leases.reserve(state, asked.guests, asked.host, settings.reserve_kb)
                return [to_dict(one) for one in placed]
        except placement.NoRoomError as error:
            raise HTTPException(409, str(error)) from error

    @app.post("/leases/{ident}/commit", response_model=Nothing)
    def commit(ident: str, moved: Document[Commit], _caller: Identity = require("service")) -> dict[str, Any]:
        try:
            with store.change() as state:
                if ident not in state.leases:
                    raise HTTPException(404, f"there is no lease {ident}")
                leases.commit(state, state.leases[ident], moved.placements)
        except placement.NoRoomError as error:
            raise HTTPException(409, str(error)) from error
        return {}

    # -- hosts -------------------------------------------------------------------------------------------------

    @app.post("/hosts/{name}/retire", response_model=Nothing)
    def retire(name: str, said: Document[Reason], caller: Identity = require("service", "operator")) -> dict[str, Any]:
        reason = said.reason or f"retired by {caller.subject}"
        with store.change() as state:
            host = host_of(state, name)
            left = [guest.name for guest in state.guests.values() if guest.host == name and guest.job]
            if left:
                raise HTTPException(409, f"{name} still has guests of jobs: {', '.join(left)}. Evacuate it first")
            holder = next((one for one in state.leases.values() if one.host == name), None)
            if holder and caller.role != "service":  # the controller sets the spare of a failed move aside
                raise HTTPException(409, f"{name} is the spare of {holder.evacuation}: wait for its end")
            host.pool, host.reason = "defunct", reason
        in_background(f"retire {name}", mark_retired, name, reason)
        return {}

    def mark_retired(name: str, reason: str) -> None:
        """Mark the host itself. It is failing: that it does not take the mark is noted and changes nothing."""
        words = "".join(letter for letter in reason if letter.isalnum() or letter in " .,:;%()/-_")
        with acting[name]:
            remove_idle(name, launcher.idle_on({name}))
            trouble = launcher.run_on_host("retire.yml", name, {"retire_host": name, "retire_reason": words})
        if trouble:
            log.warning("host %s could not be marked as retired: %s", name, trouble)
            with store.change() as state:
                if name in state.hosts and state.hosts[name].pool == "defunct":
                    state.hosts[name].reason = f"{reason}; not marked on the host: {trouble}"

    def remove_idle(host: str, guests: list[str]) -> None:
        try:
            launcher.remove(guests)
        except LaunchError as error:
            log.warning("idle guests could not be removed from %s: %s", host, error)

    @app.post("/hosts/{name}/restore", response_model=Nothing)
    def restore(name: str, _caller: Identity = require("operator")) -> dict[str, Any]:
        with store.change() as state:
            pool = host_of(state, name).pool
        if pool != "defunct":
            raise HTTPException(409, f"{name} is {pool}, not defunct: there is nothing to restore")
        with acting[name]:
            remove_idle(name, launcher.idle_on({name}))
            trouble = launcher.run_on_host("restore.yml", name, {"restore_host": check_name("host", name)})
        if trouble:
            raise HTTPException(409, f"{name} is not restored: {trouble}")
        with store.change() as state:
            host = host_of(state, name)
            host.pool, host.reason = "free", ""
            for one in [one for one in state.leases.values() if one.host == name]:
                leases.give_back(state, one)
        return {}

    return app


def in_background(name: str, act: Any, *words: Any) -> None:
    """Do something that takes a while in a thread of its own; errors are logged."""

    def guarded() -> None:
        try:
            act(*words)
        except Exception:
            log.exception("%s: an error of the resource manager itself", name)

    threading.Thread(target=guarded, name=name, daemon=True).start()


def check_request(request: JobRequest, caller: Identity) -> None:
    """Refuse a job that is not the caller's or makes no sense. Raises HTTPException."""
    if caller.role == "user" and caller.subject != request.user:
        raise HTTPException(403, f"your token is {caller.subject}'s; the job asks for user {request.user}")
    if request.uid <= 0 or request.gid <= 0:
        raise HTTPException(422, "jobs do not run as root: start it as an ordinary user")
    check_name("user", request.user)
    check_name("job", request.name)
    if not _PUBLIC_KEY.fullmatch(request.public_key):
        raise HTTPException(422, "public_key is not one SSH public key in one line, such as ssh-keygen writes")
    if request.policy not in POLICIES:
        raise HTTPException(422, f"policy {request.policy!r} is not known: use one of {', '.join(POLICIES)}")
    for name in ("hosts", "guests_per_host", "every"):
        if getattr(request, name) < 1:
            raise HTTPException(422, f"{name} is {getattr(request, name)}; it must be 1 or more")
    if request.guest_memory_kb < 131072:
        raise HTTPException(422, f"guests of {request.guest_memory_kb // 1024} MiB can't boot: ask for 128 MiB or more")


def recover(store: Store, launcher: Launcher) -> None:
    """After a restart: jobs that were being launched are launched on, what ended meanwhile is cleared."""
    membership = store.membership()
    held = {guest.job for guest in membership.guests}
    for job in membership.jobs:
        if job.state == "allocating":
            log.warning("job %s was being launched when this service ended: launching it again", job.id)
            in_background(f"launch {job.id}", launcher.launch, job.id, True)
        elif job.state in ENDED and job.id in held:
            in_background(f"clear {job.id}", launcher.clear, job.id)


def expire_leases(store: Store, stop: threading.Event) -> None:
    """Give back leases that nobody renewed; for a thread of its own."""
    while not stop.wait(5.0):
        try:
            with store.change() as state:
                for lease in leases.expire(state, time.time()):
                    log.warning("lease %s of host %s for %s has expired", lease.id, lease.host, lease.evacuation)
        except sqlite3.Error:
            log.exception("leases could not be looked at")


def main() -> None:
    """Run until SIGTERM; a setting or a file that can't be used ends it with one sentence."""
    parser = argparse.ArgumentParser(description="Failavoid's resource manager")
    parser.add_argument("--settings", default="/etc/failavoid/resource_manager.yml")
    parser.add_argument("--check", action="store_true", help="read the settings, say what is wrong, and end")
    arguments = parser.parse_args()
    services.set_up_logging()
    try:
        settings = services.load_settings(Settings, arguments.settings)
        if arguments.check:
            return
        secret = read_secret(settings.secret)
        store = Store(Path(settings.state))
        take_hosts(store, settings)
    except (services.SettingsError, ValueError) as error:
        sys.exit(f"failavoid-resource-manager: {error}")
    except (OSError, sqlite3.Error) as error:
        sys.exit(f"failavoid-resource-manager: {error}; see secret and state in {arguments.settings}")
    launcher = Launcher(settings, store, secret)
    watch = Watch(settings, store, launcher)
    stop = threading.Event()
    threading.Thread(target=watch.follow, args=(stop,), daemon=True, name="watch").start()
    threading.Thread(target=expire_leases, args=(store, stop), daemon=True, name="leases").start()
    recover(store, launcher)
    services.run(make_api(settings, store, launcher, watch, secret), settings.listen, settings.port, settings.tls)


if __name__ == "__main__":
    main()
