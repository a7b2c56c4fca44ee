#!/usr/bin/python
# Copyright: the failavoid authors
# Apache License 2.0 (see LICENSE)
"""Ansible module: live migration of guests away from a host."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: failavoid_migrate
short_description: Move guests live to other hosts
description:
  - Runs on the source host. All guests of one call move at the same time, peer-to-peer, over TLS, with their pins for
    the destination in the XML that the destination starts them from.
  - Before anything is moved, the guests and the way to the destinations are checked. Then the module waits at the gate,
    if it was given one, so that only the move itself is left when the gate opens.
  - The move is done by a detached process under the evacuation's name. Called again, the module attaches to it.
  - What became of a guest is decided from both ends. Where that is ambiguous nothing is started or destroyed.
version_added: "0.1.0"
options:
  evacuation:
    description: The name under which the moves are kept.
    type: str
    required: true
  state:
    description: V(moved) moves the guests, V(aborted) gives up what has not ended, and waits until it has.
    type: str
    choices: [moved, aborted]
    default: moved
  guests:
    description:
      - The guests, each with C(name), C(destination), C(destination_address), C(cores) and C(numa_node).
      - A guest that devices are passed through to needs C(devices), those of the destination that it gets instead, each
        with C(kind) and PCI C(address). What it has is unplugged then; if it stays after all it gets that again.
    type: list
    elements: dict
    default: []
  boot_files:
    description: Kernels and initial RAM disks that each destination has, by its name. Others' guests are not moved.
    type: dict
    default: {}
  parallel:
    description: How many guests move at once.
    type: int
    default: 8
  stall_seconds:
    description: A move that sends nothing for so long is given up.
    type: float
    default: 60
  seconds_per_gib:
    description: A move that lasts longer than this for each GiB of the guest's memory (and two minutes) is given up.
    type: float
    default: 120
  connections:
    description: How many connections the memory of each guest is sent on; more where one does not fill the network.
    type: int
    default: 1
  bandwidth_mib_s:
    description: MiB a second that all moves of one call may take together, shared out evenly. 0 for no limit.
    type: int
    default: 0
  unplug_seconds:
    description: Seconds a guest has to give up the devices that are passed through to it.
    type: float
    default: 30
  gate_url:
    description: Address that tells when the guests may move, asked by long polls. Empty moves them at once.
    type: str
    default: ""
  gate_timeout:
    description: Seconds to wait at the gate.
    type: int
    default: 3600
  token_file:
    description: JSON file on the host with the C(token) for the gate, and the C(authority) of its certificate.
    type: path
    default: /etc/failavoid/agent.json
attributes:
  check_mode:
    support: full
    description: Checks all that can be checked before a move, and stops there.
  diff_mode:
    support: none
    description: What changes is where the guests run, which is in the result.
  idempotent:
    support: full
    description: An evacuation that has ended is not done again, its result is returned.
author:
  - The failavoid authors (@failavoid)
"""

EXAMPLES = r"""
- name: Move a guest
  failavoid_migrate:
    evacuation: evac-by-hand
    guests:
      - name: g001
        destination: host05
        destination_address: 10.77.1.5
        cores: [0]
        numa_node: 0
"""

RETURN = r"""
migrations:
  description: What became of each guest, with libvirt's figures of the move.
  returned: always
  type: list
  elements: dict
  contains:
    guest:
      description: Its name.
      type: str
    source:
      description: The host that it moves away from.
      type: str
    destination:
      description: The host that it moves to.
      type: str
    destination_address:
      description: That host's address on the hosts' network.
      type: str
    cores:
      description: The destination's cores that it is pinned to.
      type: list
      elements: int
    numa_node:
      description: The destination's NUMA node that its memory is to lie on.
      type: int
    state:
      description: V(moved), V(failed) or V(cancelled), V(planned) in check mode.
      type: str
    elapsed_s:
      description: Seconds the move took.
      type: float
    downtime_ms:
      description: Milliseconds the guest stood still.
      type: float
    bytes:
      description: Bytes sent.
      type: int
    memory_bps:
      description: Bytes of memory sent a second, as QEMU measures it.
      type: int
    iterations:
      description: How many times QEMU went over the guest's memory.
      type: int
    remaining:
      description: Bytes that were still to be sent when QEMU was last asked.
      type: int
    dirty_bps:
      description: Bytes that the guest wrote to its memory in a second, as QEMU measured it last while memory was sent.
      type: int
    devices:
      description: The destination's devices that take the place of those that are unplugged for the move.
      type: list
      elements: dict
    error:
      description: What went wrong, empty if nothing did.
      type: str
cancelled:
  description: That the evacuation was given up before anything moved.
  returned: when it was
  type: bool
opened:
  description: Seconds since the epoch when the gate opened.
  returned: when there was a gate
  type: float
"""

import json
import socket
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, List

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.failavoid import guests as guests_here
from ansible.module_utils.failavoid import http, migration
from ansible.module_utils.failavoid.guest_state import GuestLockedError
from ansible.module_utils.failavoid.moves import Limits, Move, Record
from ansible.module_utils.failavoid.names import InvalidNameError, check_name

POLL_S = 20
RETRY_S = 1.0


class CancelledError(Exception):
    """The evacuation was cancelled while the module waited at the gate."""


def wait_at_gate(url: str, client: http.Client, timeout: float, aborted: Callable[[], bool]) -> float:
    """Return when the gate is open, as seconds since the epoch. Raises CancelledError, GuestError.

    A controller that is away for a while is waited for: it may be restarted in the middle of an evacuation.
    """
    deadline = time.monotonic() + timeout
    problem = ""
    while time.monotonic() < deadline:
        if aborted():
            raise CancelledError("the evacuation was given up")
        try:
            gate = client.call("GET", f"{url}?timeout={POLL_S}", timeout=POLL_S + 10)
        except http.UntrustedError as error:  # waiting would not help
            raise guests_here.GuestError(f"this host can't ask at the gate: {error}") from error
        except http.ApiError as error:
            if 400 <= error.status < 500:
                raise guests_here.GuestError(f"the gate refuses this host: {error}") from error
            problem = str(error)
            time.sleep(RETRY_S)
            continue
        if gate["cancelled"]:
            raise CancelledError(f"evacuation {gate['evacuation']} was cancelled")
        if gate["open"]:
            return time.time()
    raise guests_here.GuestError(f"the gate {url} did not open within {timeout:.0f} s {problem}".rstrip())


def client_of(path: str) -> http.Client:
    """A client with the host's own token, for the gate. Raises GuestError."""
    try:
        settings = json.loads(Path(path).read_text())
        return http.Client(str(settings["token"]), str(settings.get("authority") or ""))
    except (OSError, ValueError, KeyError) as error:
        raise guests_here.GuestError(f"the token for the gate can't be read from {path}: {error}") from error


def planned(guests: List[Dict[str, Any]], here: str) -> List[Move]:
    """The moves that are asked for. Raises GuestError if something is not given."""
    needed = ("destination", "destination_address", "cores", "numa_node")
    for guest in guests:
        missing = [key for key in needed if key not in guest]
        if missing:
            raise guests_here.GuestError(f"guest {guest.get('name')}: {', '.join(missing)} not given")
    return [
        Move(
            guest=check_name("guest", guest.get("name", "")),
            source=here,
            destination=check_name("host", guest["destination"]),
            destination_address=guest["destination_address"],
            cores=guest["cores"],
            numa_node=guest["numa_node"],
            devices=guest.get("devices", []),
        )
        for guest in guests
    ]


def given_up(evacuation: str, check: bool) -> Dict[str, Any]:
    """Give up an evacuation's moves; what is to be said of it."""
    record = migration.read_record(evacuation)
    open_before = not migration.is_aborted(evacuation) and (record is None or record.ended is None)
    moves = (record.moves if record else []) if check else migration.abort(evacuation)
    return {"changed": open_before, "migrations": [asdict(move) for move in moves]}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "evacuation": {"type": "str", "required": True},
            "state": {"type": "str", "default": "moved", "choices": ["moved", "aborted"]},
            "guests": {"type": "list", "elements": "dict", "default": []},
            "boot_files": {"type": "dict", "default": {}},
            "parallel": {"type": "int", "default": 8},
            "stall_seconds": {"type": "float", "default": 60.0},
            "seconds_per_gib": {"type": "float", "default": 120.0},
            "connections": {"type": "int", "default": 1},
            "bandwidth_mib_s": {"type": "int", "default": 0},
            "unplug_seconds": {"type": "float", "default": 30.0},
            "gate_url": {"type": "str", "default": ""},
            "gate_timeout": {"type": "int", "default": 3600},
            "token_file": {"type": "path", "default": "/etc/failavoid/agent.json"},
        },
        supports_check_mode=True,
    )
    params: Dict[str, Any] = module.params
    here = socket.gethostname()
    said: Dict[str, Any] = {"changed": False, "migrations": []}
    try:
        is_aborted = partial(migration.is_aborted, check_name("evacuation", params["evacuation"]))
        connection = guests_here.connect()
        if params["state"] == "aborted":
            module.exit_json(**given_up(params["evacuation"], module.check_mode))
        moves = planned(params["guests"], here)
        record = migration.read_record(params["evacuation"])
        if record is None:
            migration.preflight(connection, moves, params["boot_files"])
            if module.check_mode:
                module.exit_json(changed=True, migrations=[asdict(move) for move in moves])
            if params["gate_url"]:
                client = client_of(params["token_file"])
                said["opened"] = wait_at_gate(params["gate_url"], client, params["gate_timeout"], is_aborted)
            limits = Limits(
                parallel=params["parallel"],
                stall_s=params["stall_seconds"],
                seconds_per_gib=params["seconds_per_gib"],
                connections=params["connections"],
                bandwidth_mib_s=params["bandwidth_mib_s"],
                unplug_s=params["unplug_seconds"],
            )
            said["changed"] = migration.start(Record(params["evacuation"], moves, limits))
        else:
            migration.used_before(connection, record, [move.guest for move in moves])
            if module.check_mode:
                module.exit_json(changed=record.ended is None, migrations=[asdict(move) for move in record.moves])
        record = migration.wait(params["evacuation"])
    except CancelledError as error:
        module.fail_json(msg=f"{here}: {error}", cancelled=True, **said)
    except (guests_here.GuestError, GuestLockedError, InvalidNameError) as error:
        module.fail_json(msg=f"{here}: {error}", **said)
    said["migrations"] = [asdict(move) for move in record.moves]
    bad = [f"guest {move.guest}: {move.error or move.state}" for move in record.moves if move.state != "moved"]
    if bad:
        module.fail_json(msg=f"{here}: {'; '.join(bad)}", **said)
    module.exit_json(**said)


if __name__ == "__main__":
    main()
