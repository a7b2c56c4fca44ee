"""`failavoid`: what runs where, and what an operator can do about it.

Exit statuses: 0 done, 1 failed, 2 wrong words, 3 refused by a service, 4 no or the wrong token, 5 a service does not
answer. `failavoid run` returns the program's own.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from failavoid.cli.settings import CliError

app = typer.Typer(no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False, help=__doc__)
Json = Annotated[bool, typer.Option("--json", help="For programs: the API's own document.")]
F = TypeVar("F", bound=Callable[..., None])


def command(function: F) -> F:
    """Register a command whose errors are one line and an exit status."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except CliError as error:
            print(f"failavoid: {error}", file=sys.stderr)
            raise typer.Exit(error.status) from None

    app.command(context_settings={"allow_interspersed_args": False} if function.__name__ == "run" else None)(wrapped)
    return function


def ask(service: str, path: str) -> Any:
    """Read from a service."""
    from failavoid.cli.api import call

    return call(service, "GET", path)


def change(service: str, path: str, body: Any = None, timeout: float = 120.0) -> Any:
    """Have a service do something."""
    from failavoid.cli.api import call

    return call(service, "POST", path, body if body is not None else {}, timeout)


def show_table(title: str, columns: list[str], rows: list[list[object]]) -> None:
    """Print a table for people."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns, title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*("" if cell is None else str(cell) for cell in row))
    Console().print(table if rows else f"{title}: none")


def moment(seconds: float | None) -> str:
    """A time for people, in the local time zone."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if seconds else ""


def mebibytes(kilobytes: int) -> str:
    """Memory for people."""
    return f"{kilobytes // 1024} MiB"


@command
def status(as_json: Json = False) -> None:
    """Pools, jobs and evacuations at a glance."""
    membership = ask("resource_manager", "/membership")
    evacuations = ask("controller", "/evacuations")
    if as_json:
        print(json.dumps({"membership": membership, "evacuations": evacuations}))
        return
    pools = {pool: [host["name"] for host in membership["hosts"] if host["pool"] == pool] for pool in _pools()}
    show_table(
        "Pools", ["pool", "hosts", "names"], [[pool, len(names), " ".join(names)] for pool, names in pools.items()]
    )
    running = [job for job in membership["jobs"] if job["state"] not in ("completed", "failed")]
    _show_jobs(running, membership["guests"])
    _show_evacuations([one for one in evacuations if one["state"] not in ("RETIRED", "CANCELLED", "FAILED")])


@command
def hosts(as_json: Json = False) -> None:
    """All hosts with their pools."""
    membership = ask("resource_manager", "/membership")
    if as_json:
        print(json.dumps(membership["hosts"]))
        return
    on = {
        host["name"]: [g["name"] for g in membership["guests"] if g["host"] == host["name"]]
        for host in membership["hosts"]
    }
    rows = [
        [h["name"], h["pool"], h["address"], mebibytes(h["memory_kb"]), " ".join(on[h["name"]]), h["reason"]]
        for h in membership["hosts"]
    ]
    show_table("Hosts", ["host", "pool", "address", "memory", "guests", "reason"], rows)
    for warning in sorted({warning for host in membership["hosts"] for warning in host["warnings"]}):
        print(f"Note: {warning}")


@command
def guests(as_json: Json = False) -> None:
    """All guests: where they run, for which job."""
    membership = ask("resource_manager", "/membership")
    if as_json:
        print(json.dumps(membership["guests"]))
        return
    rows = [
        [
            g["name"],
            g["state"],
            g["host"],
            g["address"],
            mebibytes(g["memory_kb"]),
            g["cores"],
            g["numa_node"],
            g["user"],
            g["job"],
        ]
        for g in membership["guests"]
    ]
    show_table("Guests", ["guest", "state", "host", "address", "memory", "cores", "NUMA", "user", "job"], rows)


@command
def jobs(as_json: Json = False) -> None:
    """All jobs."""
    membership = ask("resource_manager", "/membership")
    if as_json:
        print(json.dumps(membership["jobs"]))
        return
    _show_jobs(membership["jobs"], membership["guests"])


@command
def evacuations(as_json: Json = False) -> None:
    """All evacuations."""
    found = ask("controller", "/evacuations")
    if as_json:
        print(json.dumps(found))
        return
    _show_evacuations(found)


@command
def show(evacuation: str, as_json: Json = False) -> None:
    """The whole story of an evacuation."""
    found = ask("controller", f"/evacuations/{evacuation}")
    if as_json:
        print(json.dumps(found))
        return
    print(f"{found['id']}: host {found['host']}, job {found['job']}, {found['state']} {found['error']}".rstrip())
    if found["alarm"]:
        alarm = found["alarm"]
        print(
            f"Alarm by rule {alarm['rule']}: {alarm['metric']} {alarm['value']:.1%}, "
            f"group {alarm['evidence']['centre']:.1%}, z {alarm['evidence']['z']:.1f}"
        )
    elif found["reason"]:
        print(f"Asked for: {found['reason']}")
    begun = found["steps"][0]["begun"] if found["steps"] else 0.0
    rows: list[list[object]] = [
        [
            step["name"],
            f"{step['begun'] - begun:.2f}",
            f"{step['done'] - begun:.2f}" if step["done"] else "",
            step["detail"],
        ]
        for step in found["steps"]
    ]
    show_table("Steps", ["step", "begun s", "done s", ""], rows)
    rows = [
        [
            m["guest"],
            m["source"],
            m["destination"],
            m["state"],
            m["elapsed_s"],
            m["downtime_ms"],
            m["pin_verified"],
            m["error"],
        ]
        for m in found["migrations"]
    ]
    show_table("Migrations", ["guest", "from", "to", "state", "seconds", "downtime ms", "pinned", ""], rows)


@command
def evacuate(host: str, reason: Annotated[str, typer.Option(help="Kept with the evacuation.")] = "asked for") -> None:
    """Move a host's guests away and retire it."""
    print(change("controller", "/evacuations", {"host": host, "reason": reason})["id"])


@command
def cancel(evacuation: str) -> None:
    """Cancel an evacuation whose guests do not move yet."""
    print(change("controller", f"/evacuations/{evacuation}/cancel")["state"])


@command
def retire(
    host: str, reason: Annotated[str, typer.Option(help="Shown until the host is restored.")] = "asked for"
) -> None:
    """Take a host without guests out of service."""
    change("resource_manager", f"/hosts/{host}/retire", {"reason": reason})


@command
def restore(host: str) -> None:
    """Check a retired host and bring it back."""
    change("resource_manager", f"/hosts/{host}/restore")


@command
def token(
    role: str,
    subject: str,
    secret: Annotated[Path, typer.Option(help="The site's secret.")] = Path("/etc/failavoid/secret"),
) -> None:
    """Make a token; for those who may read the site's secret."""
    from failavoid.shared.tokens import mint, read_secret

    try:
        print(mint(read_secret(secret), role, subject))
    except (OSError, ValueError) as error:
        raise CliError(str(error), 4) from error


@command
def run(
    program: Annotated[list[str], typer.Argument(help="The program and its arguments.")],
    ranks: Annotated[int, typer.Option("-n", "--ranks", help="Number of ranks. 0: one a guest.")] = 0,
    hosts: Annotated[int, typer.Option(help="Number of hosts.")] = 1,
    guests_per_host: Annotated[int, typer.Option(help="Guests on each of them.")] = 1,
    guest_memory: Annotated[str, typer.Option(help="Memory of each guest, e.g. 512MiB.")] = "256MiB",
    policy: Annotated[str, typer.Option(help="migrate: evacuate the job's hosts; off: never.")] = "migrate",
    every: Annotated[int, typer.Option(help="Look for a notice at every n-th barrier.")] = 1,
    job_name: Annotated[str, typer.Option(help="A name for people.")] = "job",
) -> None:
    """Run an MPI program in guests of its own; returns the program's exit status."""
    from failavoid.cli.run import RunRequest, run_job

    request = RunRequest(program, ranks, hosts, guests_per_host, guest_memory, policy, every, job_name)
    raise typer.Exit(run_job(request))


def _pools() -> tuple[str, ...]:
    from failavoid.shared.messages import POOLS

    return POOLS


def _show_jobs(found: list[dict[str, Any]], guests: list[dict[str, Any]]) -> None:
    on = {guest["name"]: guest["host"] for guest in guests}
    rows: list[list[object]] = [
        [
            job["id"],
            job["request"]["user"],
            job["state"],
            job["request"]["policy"],
            len(job["guests"]),
            " ".join(sorted({on[name] for name in job["guests"] if name in on})),
            moment(job["created"]),
            job["exit_status"],
            job["message"],
        ]
        for job in found
    ]
    show_table("Jobs", ["job", "user", "state", "policy", "guests", "hosts", "created", "exit", ""], rows)


def _show_evacuations(found: list[dict[str, Any]]) -> None:
    rows: list[list[object]] = [
        [one["id"], one["host"], one["job"], one["state"], one["spare"], len(one["migrations"]), one["error"]]
        for one in found
    ]
    show_table("Evacuations", ["evacuation", "host", "job", "state", "spare", "guests", ""], rows)


if __name__ == "__main__":
    app()
