"""Checks of what callers of the API send. Errors are sentences for them."""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Optional

from fastapi import HTTPException

from failavoid.shared.messages import ON_DEADLINE, ON_DEVICES, POLICIES, RESOURCES, JobRequest
from failavoid.shared.names import check_name
from failavoid.shared.tokens import Identity

LONGEST_TEXT = 500
LONGEST_COMMAND = 4096  # characters of a job's program and its arguments
MOST_DEVICES = 256
CUT = "..."  # at the end of what was cut

# A user's key becomes a variable of a playbook, where "{{" would be a template: nothing but a key passes.
_PUBLIC_KEY = re.compile(
    r"(ssh-(ed25519|rsa)|ecdsa-sha2-nistp\d+) [A-Za-z0-9+/]{1,4000}={0,2} ?[A-Za-z0-9_.@+-]{0,255}"
)


@dataclass(frozen=True)
class Account:
    """A user's numbers on the head."""

    uid: int
    gids: frozenset[int]  # of all groups that the user is a member of


AccountOf = Callable[[str], Optional[Account]]


def account_on_head(user: str) -> Account | None:
    """The user's account, wherever the head's name service has it from; None if it has none."""
    try:
        known = pwd.getpwnam(user)
    except KeyError:
        return None
    return Account(known.pw_uid, frozenset(os.getgrouplist(user, known.pw_gid)))


def check_request(request: JobRequest, caller: Identity, account_of: AccountOf) -> None:
    """Refuse a job that is not the caller's or makes no sense. Raises HTTPException."""
    if caller.role == "user" and caller.subject != request.user:
        raise HTTPException(403, f"your token is {caller.subject}'s; the job asks for user {request.user}")
    if request.uid <= 0 or request.gid <= 0:
        raise HTTPException(422, "jobs do not run as root: start it as an ordinary user")
    check_name("user", request.user)
    if caller.role == "user":
        _check_account(request, account_of(request.user))
    check_name("job", request.name)
    if not _PUBLIC_KEY.fullmatch(request.public_key):
        raise HTTPException(422, "public_key is not one SSH public key in one line, such as ssh-keygen writes")
    if request.policy not in POLICIES:
        raise HTTPException(422, f"policy {request.policy!r} is not known: use one of {', '.join(POLICIES)}")
    if request.on_deadline and request.on_deadline not in ON_DEADLINE:
        raise HTTPException(422, f"on_deadline {request.on_deadline!r} is not known: use {' or '.join(ON_DEADLINE)}")
    if request.on_devices and request.on_devices not in ON_DEVICES:
        raise HTTPException(422, f"on_devices {request.on_devices!r} is not known: use {' or '.join(ON_DEVICES)}")
    if (request.guest_hugepage_kb or 0) < 0:
        raise HTTPException(422, f"guest_hugepage_kb is {request.guest_hugepage_kb}; it must be 0 or more")
    if len(request.guest_devices) > MOST_DEVICES:
        raise HTTPException(422, f"guest_devices are {len(request.guest_devices)}; use {MOST_DEVICES} or fewer")
    for kind in request.guest_devices:
        check_name("device kind", kind)
    if request.resource not in ("", *RESOURCES):
        raise HTTPException(422, f"resource {request.resource!r} is not known: use one of {', '.join(RESOURCES)}")
    if request.expected_s is not None and not request.expected_s > 0:
        raise HTTPException(422, f"expected_s is {request.expected_s}; it must be more than 0 seconds")
    for name in ("hosts", "guests_per_host", "guest_vcpus", "every"):
        if getattr(request, name) < 1:
            raise HTTPException(422, f"{name} is {getattr(request, name)}; it must be 1 or more")
    if request.guest_memory_kb < 131072:
        raise HTTPException(422, f"guests of {request.guest_memory_kb // 1024} MiB can't boot: ask for 128 MiB or more")


def shortened(text: str, longest: int = LONGEST_TEXT) -> str:
    """A text that everybody is sent, cut to its beginning where it is too long."""
    return text if len(text) <= longest else text[: longest - len(CUT)] + CUT


def shortened_command(command: list[str]) -> list[str]:
    """A job's program and as many of its arguments as fit, whole; the first word names the program, and is there."""
    kept: list[str] = []
    left = LONGEST_COMMAND
    for word in command:
        left -= len(word) + 1
        if left < 0:
            return [*(kept or [shortened(word, LONGEST_COMMAND)]), CUT]
        kept.append(word)
    return kept


def _check_account(request: JobRequest, account: Account | None) -> None:
    """Refuse numbers that are not the user's own: guests use them on the site's file systems. Raises HTTPException."""
    if account is None:
        raise HTTPException(422, f"user {request.user} has no account on the head: see 'getent passwd {request.user}'")
    if request.uid != account.uid:
        raise HTTPException(422, f"uid {request.uid} is not {request.user}'s, which is {account.uid} on the head")
    if request.gid not in account.gids:
        raise HTTPException(
            422, f"gid {request.gid} is of no group that {request.user} is in on the head: see 'id {request.user}'"
        )
