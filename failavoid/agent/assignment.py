"""A warm guest asks the resource manager for its user, until a job has taken it.

The agent is running already, so that the user is there as soon as the answer is: starting a program, or an SSH
connection from the head, would cost an emulated CPU more than all that is to be done.
"""

# ruff: noqa: PTH123
from __future__ import annotations

import sys
import time
from typing import Any

from failavoid.agent.settings import Settings
from failavoid.shared.http import ApiError, Client
from failavoid.shared.messages import Assignment, from_dict, to_dict

POLL_S = 25.0  # the resource manager answers at the latest after that
PAUSE_S = (0.5, 10.0)  # between tries when it is away: first, longest
IDENTITY = "/usr/lib/failavoid/guest-identity"  # knows how a guest takes its user, at its boot too


def run(settings: Settings, identity: str = IDENTITY) -> None:
    """Wait until a job takes this guest, give it its user, and say so."""
    url = f"{settings.resource_manager.rstrip('/')}/guests/{settings.node}"
    client = Client(settings.token, settings.authority)
    answer = _insist(client, "GET", f"{url}/assignment?timeout={POLL_S:g}", None)
    trouble = ""
    try:
        assignment = to_dict(from_dict(Assignment, answer))
        _apply(assignment, identity)
        settings.job_user = (int(assignment["user"]["uid"]), int(assignment["user"]["gid"]))
    except Exception as error:  # whatever it was, another guest must take this one's place
        trouble = f"{type(error).__name__}: {error}"
        _say(f"the guest could not take its user: {trouble}")
    _insist(client, "POST", f"{url}/assigned", {"error": trouble})
    client.close()


def _insist(client: Client, method: str, url: str, body: Any) -> Any:
    """Call until there is an answer that says something (to a GET) or any (to a POST); refusals are answers too."""
    pause, troubled = PAUSE_S[0], False
    while True:
        asked = time.monotonic()
        try:
            answer = client.call(method, url, body, timeout=POLL_S + 10)
            pause, troubled = PAUSE_S[0], False
            if answer or method != "GET":
                return answer
            if time.monotonic() - asked < 1:
                time.sleep(1)  # nothing new, and it did not wait: do not ask in a circle
        except (ApiError, ValueError) as error:
            if method == "POST" and isinstance(error, ApiError) and 400 <= error.status < 500:
                return None
            if not troubled:
                _say(f"the resource manager can't be asked for this guest's user: {error}; trying on")
            troubled = True
            time.sleep(pause)
            pause = min(2 * pause, PAUSE_S[1])


def _apply(assignment: dict[str, Any], identity: str) -> None:
    """Have guest-identity do what the assignment says, in this process."""
    with open(identity) as file:
        code = compile(file.read(), identity, "exec")
    functions: dict[str, Any] = {"__name__": "guest_identity"}
    exec(code, functions)
    functions["assign"](assignment)


def _say(text: str) -> None:
    print(f"failavoid agent: {text}", file=sys.stderr, flush=True)
