"""`failavoid`: what runs where, and what an operator can do about it.

Exit statuses: 0 done, 1 failed, 2 wrong words, 3 refused by a service, 4 no or the wrong token, 5 a service does not
answer. `failavoid run` returns the program's own, or 75 if the job was lost with one of its guests.
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

from failavoid.cli import backtest
from failavoid.cli.settings import FAILED, NO_TOKEN, WRONG_WORDS, CliError

app = typer.Typer(no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False, help=__doc__)
Json = Annotated[bool, typer.Option("--json", help="For programs: the API's own document.")]
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
    from failavoid.cli import tables

    membership = ask("resource_manager", "/membership")
    evacuations = ask("controller", "/evacuations")
    if as_json:
        document({"membership": membership, "evacuations": evacuations})
        return
    tables.pools(membership["hosts"])
    running = [job for job in membership["jobs"] if job["ended"] is None]
    tables.jobs(running, membership["guests"])
    tables.evacuations([one for one in evacuations if one["state"] not in ("RETIRED", "CANCELLED", "FAILED")])


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
def show(evacuation: str, as_json: Json = False) -> None:
    """The whole story of an evacuation."""
    from failavoid.cli import tables

    found = ask("controller", f"/evacuations/{part(evacuation)}")
    if as_json:
        document(found)
        return
    tables.story(found)


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
def evacuate(host: str, reason: Annotated[str, typer.Option(help="Kept with the evacuation.")] = "asked for") -> None:
    """Move a host's guests away and retire it. Prints the evacuation's name."""
    print(change("controller", "/evacuations", {"host": host, "reason": reason})["id"])


@command
def cancel(evacuation: str) -> None:
    """Cancel an evacuation whose guests do not move yet."""
    print(change("controller", f"/evacuations/{part(evacuation)}/cancel")["state"])


@command
def retire(
    host: str, reason: Annotated[str, typer.Option(help="Shown until the host is restored.")] = "asked for"
) -> None:
    """Take a host without guests of jobs out of service."""
    change("resource_manager", f"/hosts/{part(host)}/retire", {"reason": reason})


@command
def restore(host: str) -> None:
    """Check a retired host and bring it back."""
    change("resource_manager", f"/hosts/{part(host)}/restore")


@command
def remove(guest: str) -> None:
    """Remove a guest that no job uses."""
    change("resource_manager", f"/guests/{part(guest)}", method="DELETE")


@command
def end(job: str, message: Annotated[str, typer.Option(help="Kept with the job.")] = "ended by hand") -> None:
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
    ranks: Annotated[int, typer.Option("-n", "--ranks", min=0, help="Number of ranks. 0: one a guest.")] = 0,
    hosts: Annotated[int, typer.Option(min=1, help="Number of hosts.")] = 1,
    guests_per_host: Annotated[int, typer.Option(min=1, help="Guests on each of them.")] = 1,
    guest_memory: Annotated[str, typer.Option(help="Memory of each guest, e.g. 512MiB.")] = "256MiB",
    policy: Annotated[str, typer.Option(help="migrate: evacuate the job's hosts; off: never.")] = "migrate",
    every: Annotated[int, typer.Option(min=1, help="Look for a notice at every n-th barrier.")] = 1,
    job_name: Annotated[str, typer.Option(help="A name for people.")] = "job",
) -> None:
    """Run an MPI program in guests of its own; returns the program's exit status."""
    from failavoid.cli.run import RunRequest, run_job

    request = RunRequest(program, ranks, hosts, guests_per_host, guest_memory, policy, every, job_name)
    raise typer.Exit(run_job(request))


# -- trying rules on recordings ------------------------------------------------------------------------------------

backtests = typer.Typer(no_args_is_help=True, help="What a rule would have been worth on recordings.")
app.add_typer(backtests, name="backtest")
for of_backtests in (backtest.archive, backtest.compose):
    command(of_backtests, backtests)
command(backtest.generate)


if __name__ == "__main__":
    app()
