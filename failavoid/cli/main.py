"""`failavoid`: what runs where, and what an operator can do about it.

Exit statuses: 0 done, 1 failed, 2 wrong words, 3 refused by a service, 4 no or the wrong token, 5 a service does not
answer, 6 its certificate can't be trusted. `failavoid run` returns the program's own, or 75 if the job was lost with
one of its guests.
"""

# Modules are loaded by the command that needs them: a command is to answer at once.

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from failavoid.cli import backtest, completion
from failavoid.cli.settings import FAILED, NO_TOKEN, WRONG_WORDS, CliError

app = typer.Typer(no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False, help=__doc__)
Host = Annotated[str, typer.Argument(autocompletion=completion.hosts)]
Job = Annotated[str, typer.Argument(autocompletion=completion.jobs)]
Guest = Annotated[str, typer.Argument(autocompletion=completion.guests)]
EvacuationId = Annotated[str, typer.Argument(autocompletion=completion.evacuations)]
Json = Annotated[bool, typer.Option("--json", help="For programs: the API's own document.")]
Place = Annotated[
    str, typer.Argument(help="A host, or a failure domain such as rack=r1.", autocompletion=completion.hosts)
]
Reason = Annotated[str, typer.Option(help="Kept in the audit log.")]
F = TypeVar("F", bound=Callable[..., None])

PLAYBOOK_S = 120.0  # a service that runs a playbook on a host answers when that is done


def command(function: F, into: typer.Typer = app) -> F:
    """Register a command whose errors are one line and an exit status."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except CliError as error:
            print(f"failavoid: {error}", file=sys.stderr)
            raise typer.Exit(error.status) from None
        except KeyboardInterrupt:
            raise typer.Exit(130) from None

    into.command(context_settings={"allow_interspersed_args": False} if function.__name__ == "run" else None)(wrapped)
    return function


def ask(service: str, path: str) -> Any:
    """Read from a service."""
    from failavoid.cli.api import call

    return call(service, "GET", path)


def change(service: str, path: str, body: Any = None, method: str = "POST") -> Any:
    """Have a service do something."""
    from failavoid.cli.api import call

    return call(service, method, path, {} if body is None else body, PLAYBOOK_S)


def part(word: str) -> str:
    """A word of the command line as part of a path."""
    from failavoid.cli.api import name

    return name(word)


def document(found: Any) -> None:
    """Print for programs."""
    print(json.dumps(found))


# -- looking -----------------------------------------------------------------------------------------------------


@command
def status(as_json: Json = False) -> None:
    """Pools, jobs and evacuations at a glance."""
    from failavoid.cli import evacuations as view
    from failavoid.cli import tables

    membership = ask("resource_manager", "/membership")
    evacuations = ask("controller", "/evacuations")
    controller = ask("controller", "/status")
    if as_json:
        document({"membership": membership, "evacuations": evacuations, "controller": controller})
        return
    if warning := view.switch(controller):
        print(f"{warning}\n")
    tables.pools(membership["hosts"])
    tables.differences(membership["differences"])
    running = [job for job in membership["jobs"] if job["ended"] is None]
    tables.jobs(running, membership["guests"])
    tables.evacuations([one for one in evacuations if not view.ended(one)])


@command
def top(
    every: Annotated[float, typer.Option(min=0.2, help="Seconds between pictures.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="One picture, for a pipe or a log.")] = False,
) -> None:
    """The machine at a glance, drawn anew until Ctrl-C: memory, evacuations, alarms."""
    from failavoid.cli import top as view

    view.show(ask, every, once)


@command
def hosts(as_json: Json = False) -> None:
    """All hosts with their pools."""
    from failavoid.cli import tables

    membership = ask("resource_manager", "/membership")
    if as_json:
        document(membership["hosts"])
        return
    tables.hosts(membership["hosts"], membership["guests"])


@command
def guests(as_json: Json = False) -> None:
    """All guests: where they run, for which job."""
    from failavoid.cli import tables

    found = ask("resource_manager", "/membership")["guests"]
    if as_json:
        document(found)
        return
    tables.guests(found)


@command
def jobs(as_json: Json = False) -> None:
    """All jobs, the oldest first."""
    from failavoid.cli import tables

    membership = ask("resource_manager", "/membership")
    if as_json:
        document(membership["jobs"])
        return
    tables.jobs(membership["jobs"], membership["guests"])


@command
def alarms(as_json: Json = False) -> None:
    """All alarms the monitor remembers."""
    from failavoid.cli import tables

    found = ask("monitor", "/alarms")
    if as_json:
        document(found)
        return
    tables.alarms(found)


@command
def evacuations(as_json: Json = False) -> None:
    """All evacuations."""
    from failavoid.cli import tables

    found = ask("controller", "/evacuations")
    if as_json:
        document(found)
        return
    tables.evacuations(found)


@command
def show(evacuation: EvacuationId, as_json: Json = False) -> None:
    """The whole story of an evacuation. While it is open, a terminal shows how far its guests have come."""
    from failavoid.cli import evacuations, tables

    found = ask("controller", f"/evacuations/{part(evacuation)}")
    if as_json:
        document(found)
        return
    if not evacuations.ended(found):
        evacuations.follow_moves(found)
        found = ask("controller", f"/evacuations/{part(evacuation)}")
    tables.story(found)


@command
def plan(place: Place, as_json: Json = False) -> None:
    """What would be done if a host or failure domain were about to fail; does nothing."""
    from failavoid.cli import tables

    found = ask("controller", f"/plan?host={part(place)}")
    if as_json:
        document(found)
        return
    tables.plans(found)


@command
def events(
    after: Annotated[int, typer.Option(min=0, help="Only events after this number.")] = 0,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for events to come.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs: a document a line.")] = False,
) -> None:
    """The controller's audit log: steps, alarms and requests, in one order."""
    from failavoid.cli import evacuations

    evacuations.events(
        after, follow, lambda event: print(json.dumps(event) if as_json else evacuations.line(event), flush=True)
    )


@command
def audit(
    about: Annotated[str, typer.Option(help="Only what speaks of this host, guest, job, alarm or evacuation.")] = "",
    last: Annotated[str, typer.Option(help="Only what is that recent, e.g. 30m or 2:00:00.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="For programs: a document a line.")] = False,
) -> None:
    """The audit log of the site: who changed what, when and why."""
    import time

    from failavoid.cli import audit
    from failavoid.cli.run import seconds

    for event in audit.entries(time.time() - seconds(last) if last else 0.0, about):
        print(json.dumps(event) if as_json else audit.line(event))


@command
def predictions(as_json: Json = False) -> None:
    """How good each rule's predictions were so far."""
    from failavoid.cli import tables

    found = ask("monitor", "/predictions")
    if as_json:
        document(found)
        return
    tables.predictions(found)


@command
def findings(as_json: Json = False) -> None:
    """What the monitor finds about jobs and nodes that is no alarm, such as silent hosts."""
    from failavoid.cli import tables

    found = ask("monitor", "/findings")
    if as_json:
        document(found)
        return
    tables.findings(found)


# -- acting ------------------------------------------------------------------------------------------------------


@command
def evacuate(place: Place, reason: Reason = "asked for") -> None:
    """Move all guests away from a host, or from the hosts of a failure domain. Prints the evacuations' names."""
    for evacuation in change("controller", "/evacuations", {"host": place, "reason": reason}):
        print(evacuation["id"])


@command
def cancel(evacuation: EvacuationId, reason: Reason = "") -> None:
    """Cancel an evacuation whose guests do not move yet."""
    print(change("controller", f"/evacuations/{part(evacuation)}/cancel", {"reason": reason})["state"])


@command
def confirm(evacuation: EvacuationId) -> None:
    """Let an evacuation go on that the controller recommends."""
    print(change("controller", f"/evacuations/{part(evacuation)}/confirm")["state"])


@command
def stop_evacuations(reason: Reason = "") -> None:
    """Let no new evacuation begin; those whose ranks know of nothing yet are cancelled."""
    change("controller", "/stop", {"reason": reason})


@command
def allow_evacuations(reason: Reason = "") -> None:
    """Let evacuations begin again."""
    change("controller", "/allow", {"reason": reason})


@command
def retire(
    host: Host, reason: Annotated[str, typer.Option(help="Shown until the host is restored.")] = "asked for"
) -> None:
    """Take a host without guests of jobs out of service."""
    change("resource_manager", f"/hosts/{part(host)}/retire", {"reason": reason})


@command
def drain(
    host: Host, reason: Annotated[str, typer.Option(help="Shown until the host is restored.")] = "asked for"
) -> None:
    """Give a host no new work; jobs on it go on."""
    change("resource_manager", f"/hosts/{part(host)}/drain", {"reason": reason})


@command
def restore(host: Host) -> None:
    """Check a host that was drained, suspected or retired, and bring it back."""
    change("resource_manager", f"/hosts/{part(host)}/restore")


@command
def remove(guest: Guest) -> None:
    """Remove a guest that no job uses."""
    change("resource_manager", f"/guests/{part(guest)}", method="DELETE")


@command
def end(job: Job, message: Annotated[str, typer.Option(help="Kept with the job.")] = "ended by hand") -> None:
    """End a job and free its hosts, also one whose `failavoid run` is gone."""
    print(change("resource_manager", f"/jobs/{part(job)}/ended", {"exit_status": None, "message": message})["state"])


@command
def token(
    role: str,
    subject: str,
    secret: Annotated[Path, typer.Option(help="The site's secret.")] = Path("/etc/failavoid/secret"),
) -> None:
    """Make a token; for those who may read the site's secret."""
    from failavoid.shared.tokens import mint, read_secret

    try:
        key = read_secret(secret)
    except OSError as error:
        raise CliError(f"{secret}: the site's secret can't be read ({error.strerror})", NO_TOKEN) from error
    except ValueError as error:
        raise CliError(str(error), FAILED) from error
    try:
        print(mint(key, role, subject))
    except ValueError as error:
        raise CliError(str(error), WRONG_WORDS) from error


@command
def run(
    program: Annotated[list[str], typer.Argument(help="The program and its arguments.")],
    ranks: Annotated[
        int, typer.Option("-n", "--ranks", min=0, help="Number of ranks. 0: one a core of the guests.")
    ] = 0,
    hosts: Annotated[int, typer.Option(min=0, help="Number of hosts. 0: as many as the ranks need.")] = 0,
    guests_per_host: Annotated[int, typer.Option(min=1, help="Guests on each of them.")] = 1,
    guest_memory: Annotated[str, typer.Option(help="Memory of each guest, e.g. 512MiB.")] = "256MiB",
    policy: Annotated[str, typer.Option(help="On a failing host: migrate, checkpoint, or off.")] = "migrate",
    every: Annotated[int, typer.Option(min=1, help="Look for a notice at every n-th barrier.")] = 1,
    job_name: Annotated[str, typer.Option(help="A name for people.")] = "job",
    guest_vcpus: Annotated[int, typer.Option(min=1, help="Cores of each guest.")] = 1,
    hardware_class: Annotated[str, typer.Option(help="Class of the hosts. Empty: any one.")] = "",
    on_hosts: Annotated[bool, typer.Option("--on-hosts", help="On the hosts themselves, without guests.")] = False,
    expected_time: Annotated[str, typer.Option(help="How long the job will run, e.g. 30m or 2:00:00.")] = "",
    on_deadline: Annotated[
        str, typer.Option(help="When not all ranks stop in time: migrate or cancel. Empty: as the site does.")
    ] = "",
    guest_hugepages: Annotated[
        str, typer.Option(help="Pages that back the guests' memory: 2MiB, 1GiB or none. Empty: as the site does.")
    ] = "",
    guest_device: Annotated[
        list[str] | None, typer.Option(help="Kind of a device to pass through to each guest; may be repeated.")
    ] = None,
    on_devices: Annotated[
        str, typer.Option(help="Before guests with devices move: refuse or unplug. Empty: as the site does.")
    ] = "",
) -> None:
    """Run an MPI program in guests of its own; returns the program's exit status."""
    from failavoid.cli.run import RunRequest, run_job

    request = RunRequest(
        program,
        ranks,
        hosts,
        guests_per_host,
        guest_memory,
        policy,
        every,
        job_name,
        on_deadline,
        guest_vcpus,
        on_hosts,
        expected_time,
        hardware_class,
        guest_hugepages,
        guest_device or [],
        on_devices,
    )
    raise typer.Exit(run_job(request))


# -- trying rules on recordings ------------------------------------------------------------------------------------

backtests = typer.Typer(no_args_is_help=True, help="What a rule would have been worth on recordings.")
app.add_typer(backtests, name="backtest")
for of_backtests in (backtest.archive, backtest.compose):
    command(of_backtests, backtests)
command(backtest.generate)


if __name__ == "__main__":
    app()
