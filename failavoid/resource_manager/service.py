"""The resource manager's process: its API, and the threads behind it."""

from __future__ import annotations

import argparse
import logging
import threading
import time
from pathlib import Path
from typing import Any

from fastapi import Body, FastAPI, HTTPException

from failavoid import services
from failavoid.playbook_runner import run_playbook
from failavoid.resource_manager import leases, placement
from failavoid.resource_manager.launch import Launcher
from failavoid.resource_manager.settings import Settings
from failavoid.resource_manager.store import Store
from failavoid.resource_manager.watch import Watch
from failavoid.services import require
from failavoid.shared.messages import POLICIES, Host, Job, JobRequest, Placement, from_dict, to_dict
from failavoid.shared.names import check_name
from failavoid.shared.tokens import Identity, read_secret

log = logging.getLogger(__name__)
Document = dict[str, Any]


def take_hosts(store: Store, settings: Settings) -> None:
    """Bring the state's hosts in line with the settings; pools and reasons stay."""
    with store.change() as state:
        for declared in settings.hosts:
            known = state.hosts.setdefault(declared.name, Host(declared.name, declared.address))
            known.address, known.memory_kb, known.numa = declared.address, declared.memory_kb, declared.numa
        declared_names = {host.name for host in settings.hosts}
        used = {guest.host for guest in state.guests.values()}
        for name in [name for name in state.hosts if name not in declared_names | used]:
            del state.hosts[name]


def make_api(settings: Settings, store: Store, launcher: Launcher, secret: bytes) -> FastAPI:
    """Make the API of docs/architecture.md."""
    app = services.make_app("failavoid resource manager", secret)

    def note_warnings() -> None:
        with store.change() as state:
            for host in state.hosts.values():
                host.warnings = placement.warnings(state, host)

    def job_of(ident: str, caller: Identity) -> Job:
        job = next((job for job in store.membership().jobs if job.id == ident), None)
        if job is None:
            raise HTTPException(404, f"there is no job {ident}")
        if caller.role == "user" and caller.subject != job.request.user:
            raise HTTPException(403, f"job {ident} is {job.request.user}'s")
        return job

    @app.get("/membership")
    async def membership(after: int = -1, timeout: float = 0.0, _caller: Identity = require()) -> Document:
        # a number from another life of this service is answered at once
        if store.changes.version >= after >= 0 and timeout > 0:
            await store.changes.wait(after, min(timeout, 60.0))
        return to_dict(store.membership())

    @app.post("/jobs")
    def submit(body: Document = Body(), caller: Identity = require("user", "operator")) -> Document:
        request = from_dict(JobRequest, body)
        check_request(request, caller)
        ident = f"{request.name}-{store.next_number('job')}"
        try:
            job = launcher.allocate(check_name("job", ident), request)
        except placement.NoRoomError as error:
            raise HTTPException(409, str(error)) from error
        note_warnings()
        log.info("job %s of %s: %d guests", ident, request.user, len(job.guests))
        threading.Thread(target=launcher.launch, args=(ident,), name=f"launch {ident}", daemon=True).start()
        return to_dict(job)

    @app.get("/jobs/{ident}")
    def show_job(ident: str, caller: Identity = require()) -> Document:
        return to_dict(job_of(ident, caller))

    @app.post("/jobs/{ident}/started")
    def started(ident: str, body: Document = Body(), caller: Identity = require("user", "operator")) -> Document:
        job_of(ident, caller)
        with store.change() as state:
            job = state.jobs[ident]
            if job.state not in ("ready", "running"):
                raise HTTPException(409, f"job {ident} is {job.state} {job.message}".strip())
            job.state, job.started = "running", time.time()
            job.command = [str(word) for word in body.get("command", [])]
            return to_dict(job)

    @app.post("/jobs/{ident}/ended")
    def ended(ident: str, body: Document = Body(), caller: Identity = require("user", "operator")) -> Document:
        job_of(ident, caller)
        status = body.get("exit_status")
        launcher.end(ident, "completed" if status == 0 else "failed", status, str(body.get("message", "")))
        return to_dict(job_of(ident, caller))

    @app.post("/leases")
    def lease(body: Document = Body(), _caller: Identity = require("service")) -> Document:
        evacuation = check_name("evacuation", body.get("evacuation", ""))
        number = store.next_number("lease")
        try:
            with store.change() as state:
                return to_dict(leases.take(state, evacuation, settings.lease_s, number))
        except placement.NoRoomError as error:
            raise HTTPException(409, str(error)) from error

    @app.delete("/leases/{ident}")
    def give_back(ident: str, _caller: Identity = require("service")) -> Document:
        with store.change() as state:
            if ident not in state.leases:
                raise HTTPException(404, f"there is no lease {ident}")
            leases.give_back(state, state.leases[ident])
        return {}

    @app.post("/placements")
    def place(body: Document = Body(), _caller: Identity = require("service")) -> list[Document]:
        try:
            with store.change() as state:
                return [to_dict(placed) for placed in leases.reserve(state, body["guests"], body["host"])]
        except placement.NoRoomError as error:
            raise HTTPException(409, str(error)) from error
        except (KeyError, TypeError) as error:
            raise HTTPException(422, "placements need 'guests' (a list of names) and 'host'") from error

    @app.post("/leases/{ident}/commit")
    def commit(ident: str, body: Document = Body(), _caller: Identity = require("service")) -> Document:
        placements = [from_dict(Placement, one) for one in body.get("placements", [])]
        try:
            with store.change() as state:
                if ident not in state.leases:
                    raise HTTPException(404, f"there is no lease {ident}")
                leases.commit(state, state.leases[ident], placements)
        except placement.NoRoomError as error:
            raise HTTPException(409, str(error)) from error
        note_warnings()
        return {}

    @app.post("/hosts/{name}/retire")
    def retire(name: str, body: Document = Body(), caller: Identity = require("service", "operator")) -> Document:
        reason = str(body.get("reason", "")) or f"retired by {caller.subject}"
        with store.change() as state:
            host = state.hosts.get(name)
            if host is None:
                raise HTTPException(404, f"there is no host {name}")
            left = [guest.name for guest in state.guests.values() if guest.host == name and guest.job]
            if left:
                raise HTTPException(409, f"{name} still has guests of jobs: {', '.join(left)}. Evacuate it first")
            host.pool, host.reason = "defunct", reason
            for guest in [guest for guest in state.guests.values() if guest.host == name]:
                del state.guests[guest.name]
        threading.Thread(target=mark_retired, args=(name, reason), name=f"retire {name}", daemon=True).start()
        return {}

    def mark_retired(name: str, reason: str) -> None:
        """Mark the host itself. It is failing: that it does not take the mark is noted and changes nothing."""
        words = "".join(letter for letter in reason if letter.isalnum() or letter in " .,:;%()/-_")
        result = run_host_playbook("retire.yml", f"retire-{name}", {"retire_host": name, "retire_reason": words})
        if result:
            log.warning("host %s could not be marked as retired: %s", name, result)
            with store.change() as state:
                state.hosts[name].reason = f"{reason}; not marked on the host: {result}"

    @app.post("/hosts/{name}/restore")
    def restore(name: str, _caller: Identity = require("operator")) -> Document:
        if name not in {host.name for host in store.membership().hosts}:
            raise HTTPException(404, f"there is no host {name}")
        result = run_host_playbook("restore.yml", f"restore-{name}", {"restore_host": check_name("host", name)})
        if result:
            raise HTTPException(409, f"{name} is not restored: {result}")
        with store.change() as state:
            if state.hosts[name].pool == "defunct":
                state.hosts[name].pool, state.hosts[name].reason = "free", ""
        return {}

    def run_host_playbook(playbook: str, ident: str, variables: Document) -> str:
        """Run a playbook on one host; returns why it failed, or nothing."""
        logs = Path(settings.state) / "logs"
        result = run_playbook(playbook, Path(settings.inventory), variables, ident, logs, 60.0)
        if result.ok and result.host_results:
            return ""
        return "; ".join(result.failures) or f"the playbook did nothing, see {result.log}"

    @app.delete("/guests/{name}")
    def remove_guest(name: str, _caller: Identity = require("operator")) -> Document:
        guest = next((guest for guest in store.membership().guests if guest.name == name), None)
        if guest is None:
            raise HTTPException(404, f"there is no guest {name}")
        if guest.job:
            raise HTTPException(409, f"guest {name} belongs to job {guest.job}")
        try:
            launcher.remove([guest])
        except placement.NoRoomError as error:
            raise HTTPException(502, str(error)) from error
        return {}

    return app


def check_request(request: JobRequest, caller: Identity) -> None:
    """Refuse a job that is not the caller's or makes no sense. Raises HTTPException."""
    if caller.role == "user" and caller.subject != request.user:
        raise HTTPException(403, f"your token is {caller.subject}'s; the job asks for user {request.user}")
    if request.uid == 0:
        raise HTTPException(422, "jobs do not run as root: start it as an ordinary user")
    check_name("user", request.user)
    check_name("job", request.name)
    if request.policy not in POLICIES:
        raise HTTPException(422, f"policy {request.policy!r} is not known: use one of {', '.join(POLICIES)}")
    for name in ("hosts", "guests_per_host", "every"):
        if getattr(request, name) < 1:
            raise HTTPException(422, f"{name} is {getattr(request, name)}; it must be 1 or more")
    if request.guest_memory_kb < 131072:
        raise HTTPException(422, f"guests of {request.guest_memory_kb // 1024} MiB can't boot: ask for 128 MiB or more")


def recover(store: Store, launcher: Launcher) -> None:
    """After a restart: jobs that were being launched are launched on."""
    for job in store.membership().jobs:
        if job.state == "allocating":
            log.warning("job %s was being launched when this service ended: launching it again", job.id)
            threading.Thread(target=launcher.launch, args=(job.id,), daemon=True).start()


def expire_leases(store: Store, stop: threading.Event) -> None:
    """Give back leases that nobody renewed; for a thread of its own."""
    while not stop.wait(5.0):
        with store.change() as state:
            for lease in leases.expire(state, time.time()):
                log.warning("lease %s of host %s for %s has expired", lease.id, lease.host, lease.evacuation)


def main() -> None:
    """Run the service."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", default="/etc/failavoid/resource_manager.yml")
    services.set_up_logging()
    settings = services.load_settings(Settings, parser.parse_args().settings)
    secret = read_secret(settings.secret)
    store = Store(Path(settings.state))
    take_hosts(store, settings)
    launcher = Launcher(settings, store, secret)
    stop = threading.Event()
    threading.Thread(target=Watch(settings, store, launcher).follow, args=(stop,), daemon=True, name="watch").start()
    threading.Thread(target=expire_leases, args=(store, stop), daemon=True, name="leases").start()
    recover(store, launcher)
    services.run(make_api(settings, store, launcher, secret), settings.listen, settings.port)


if __name__ == "__main__":
    main()
