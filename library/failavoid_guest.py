#!/usr/bin/python
# Copyright: the failavoid authors
# Apache License 2.0 (see LICENSE)
"""Ansible module: guests on a host."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: failavoid_guest
short_description: Start, verify and remove KVM guests on a host
description:
  - Starts guests pinned to cores of one NUMA node with their memory on that node, watches their consoles until they
    are up, and verifies from the host where they really run.
  - Prepares a host for guests that will arrive by live migration, and verifies them after their arrival.
  - Works on all guests of one call at once. Each guest has a state directory in C(/var/lib/failavoid/guests) and is
    locked while the module acts on it.
  - Guests are transient in libvirt, so that one that was lost never comes back by itself.
version_added: "0.1.0"
options:
  state:
    description:
      - V(present) starts the guests that do not run yet.
      - V(expected) prepares the host for guests that will arrive.
      - V(arrived) verifies guests that have arrived.
      - V(unexpected) forgets guests that were expected and did not come.
      - V(absent) removes the guests.
      - V(info) changes nothing and tells what is there.
    type: str
    choices: [present, expected, arrived, unexpected, absent, info]
    default: present
  guests:
    description:
      - The guests, each with its C(name).
      - V(present) needs C(uuid), C(memory_kb), C(cores), C(numa_node), C(address), C(kernel), C(initrd)
        and C(cmdline), and takes C(vcpus), C(image), C(user), C(hugepage_kb) for the size of the pages that back its
        memory, and C(devices) of the host that are passed through to it, each with C(kind) and PCI C(address).
        V(arrived) needs C(cores) and C(numa_node). V(expected) needs C(address), and takes the C(devices) of this host
        that V(arrived) plugs in. V(absent) takes C(uuid), and then removes no other guest of that name.
    type: list
    elements: dict
    default: []
  identities:
    description:
      - For V(present), a JSON object that gives each guest's name its identity, which it reads from its fw_cfg.
      - It holds keys and tokens, and is never shown.
    type: str
    default: "{}"
  evacuation:
    description: For V(expected), the evacuation they come with; asked again in the same one nothing is changed.
    type: str
    default: ""
  domain_type:
    description: V(auto) takes what the host's probe found, C(/etc/failavoid/host.json).
    type: str
    choices: [auto, kvm, qemu]
    default: auto
  bridge:
    description: The bridge the guests' interfaces join.
    type: str
    default: br0
  machine:
    description: QEMU's machine type. The same on all hosts of a pool.
    type: str
    default: q35
  cpu_model:
    description: A CPU model that all hosts of the pool offer. Empty for the host's with V(kvm), QEMU's with V(qemu).
    type: str
    default: ""
  translation_cache_mib:
    description: Size of the translation cache of an emulated guest, in MiB.
    type: int
    default: 64
  oom_score_adj:
    description: Set for the guests' QEMU processes, if given. A higher value is killed first when memory ends.
    type: int
  boot_timeout:
    description:
      - Seconds a guest may take from its start until it is up. An emulated guest may take five times as long, and
        guests of one call that share cores accordingly longer.
    type: int
    default: 120
attributes:
  check_mode:
    support: full
    description: Says what would be changed.
  diff_mode:
    support: full
    description: Shows the guests' states before and after.
  idempotent:
    support: full
    description: Guests that are as wanted are left alone.
author:
  - The failavoid authors (@failavoid)
"""

EXAMPLES = r"""
- name: Remove a guest
  failavoid_guest:
    state: absent
    guests:
      - name: g001

- name: Prepare for a guest that will arrive
  failavoid_guest:
    state: expected
    evacuation: evac-by-hand
    guests:
      - name: g001
        address: 10.77.2.1
"""

RETURN = r"""
guests:
  description: What is to be said of each guest.
  returned: always
  type: list
  elements: dict
  contains:
    guest:
      description: Its name.
      type: str
    state:
      description: V(running), V(expected), V(moved) or V(absent). In check mode the wanted state.
      type: str
    cores:
      description: The cores it is pinned to, for V(running) and V(moved).
      type: list
      elements: int
    numa_node:
      description: The NUMA node that its memory is to lie on, for V(running) and V(moved).
      type: int
    pin_verified:
      description: Whether it really runs on its cores and its memory lies on its NUMA node.
      type: bool
    pin_differences:
      description: Where it does not, in words.
      type: list
      elements: str
    pages_by_node:
      description: NUMA node -> pages of its QEMU's memory that lie there.
      type: dict
    page_kb:
      description: Size in kB of the pages that its memory really lies in.
      type: int
    boot_s:
      description: Seconds from its start until it was up, if it was started or waited for now.
      type: float
    uuid:
      description: What libvirt gives as its UUID, none if it knows no such guest. For O(state=info).
      type: str
    running:
      description: Whether libvirt says that it runs. For O(state=info).
      type: bool
    noted:
      description: What its state directory says of it, none if there is none. For O(state=info).
      type: dict
    devices_missing:
      description: Why a guest that has arrived could not be given its devices here; empty if it has them.
      type: str
boot_files:
  description: Kernels and initial RAM disks that guests can boot here.
  returned: for O(state=expected), and in check mode
  type: list
  elements: str
begun:
  description: When the module began, in seconds since the epoch by the host's clock.
  returned: always
  type: float
done:
  description: When it ended.
  returned: always
  type: float
migrations:
  description: For V(arrived) the same as RV(guests), under the name the controller looks for.
  returned: for O(state=arrived)
  type: list
  elements: dict
"""

import contextlib
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.failavoid import guests as guests_here
from ansible.module_utils.failavoid.domain_xml import GuestSpec, HostSettings
from ansible.module_utils.failavoid.guest_state import GuestLockedError
from ansible.module_utils.failavoid.names import InvalidNameError, check_name
from ansible.module_utils.failavoid.taps import TapError

HOST_FACTS = Path("/etc/failavoid/host.json")
EMULATION = 5  # how much longer an emulated guest boots, at most
# what a guest is once it is as wanted
WANTED = {
    "present": "running",
    "expected": "expected",
    "arrived": "running",
    "unexpected": "absent",
    "absent": "absent",
}
NEEDED = {
    "present": ("uuid", "memory_kb", "cores", "numa_node", "address", "kernel", "initrd", "cmdline"),
    "expected": ("address",),
    "arrived": ("cores", "numa_node"),
}


def domain_type_of_host() -> str:
    """What the probe of the role 'hypervisor' found."""
    try:
        return str(json.loads(HOST_FACTS.read_text())["domain_type"])
    except (OSError, ValueError, KeyError) as error:
        raise guests_here.GuestError(
            f"{HOST_FACTS} does not tell the domain type ({error}): run the role 'hypervisor'"
        ) from error


def check_guests(state: str, guests: List[Dict[str, Any]]) -> None:
    """Refuse a list of guests that lacks something, before anything is done."""
    for guest in guests:
        check_name("guest", guest.get("name", ""))
        missing = [key for key in NEEDED.get(state, ()) if key not in guest]
        if missing:
            raise guests_here.GuestError(f"guest {guest['name']}: {', '.join(missing)} not given for state {state}")


def host_settings(params: Dict[str, Any]) -> HostSettings:
    """How guests are made here. Raises GuestError."""
    chosen = params["domain_type"]
    return HostSettings(
        domain_type=domain_type_of_host() if chosen == "auto" else chosen,
        bridge=params["bridge"],
        machine=params["machine"],
        cpu_model=params["cpu_model"],
        translation_cache_mib=params["translation_cache_mib"],
    )


def specification(guest: Dict[str, Any], identities: Dict[str, Any]) -> GuestSpec:
    """What is wanted of a guest, without what is not for its host."""
    known = set(GuestSpec.__dataclass_fields__)
    wanted = {key: value for key, value in guest.items() if key in known}
    return GuestSpec(**wanted, identity=identities.get(guest["name"], {}))


def act(params: Dict[str, Any], connection: Any) -> Callable[[Dict[str, Any]], Dict[str, Any]]:
    """What is done with one guest, by the wanted state."""
    state = params["state"]
    if state == "present":
        host = host_settings(params)
        identities = json.loads(params["identities"])
        return lambda guest: guests_here.start(
            connection,
            specification(guest, identities),
            host,
            params["oom_score_adj"],
            boot_limit(params["boot_timeout"], host.domain_type, params["guests"]),
        )
    if state == "expected":
        return lambda guest: guests_here.expect(
            connection,
            guest["name"],
            guest["address"],
            params["bridge"],
            params["evacuation"],
            guest.get("devices", []),
        )
    if state == "arrived":
        return lambda guest: guests_here.arrived(
            connection, guest["name"], guest["cores"], guest["numa_node"], params["oom_score_adj"]
        )
    if state == "unexpected":
        return lambda guest: {
            "guest": guest["name"],
            "state": "absent",
            "changed": guests_here.not_expected(connection, guest["name"]),
        }
    return lambda guest: {
        "guest": guest["name"],
        "state": "absent",
        "changed": guests_here.end(connection, guest["name"], guest.get("uuid", "")),
    }


def boot_limit(seconds: float, domain_type: str, guests: List[Dict[str, Any]]) -> float:
    """The time limit of a boot: longer for emulated guests, and where several are given the same core."""
    cores = [core for guest in guests for core in guest["cores"]]
    sharing = max(cores.count(core) for core in cores)
    return seconds * (EMULATION if domain_type == "qemu" else 1) * sharing


def due(params: Dict[str, Any], connection: Any, before: Dict[str, Dict[str, Any]]) -> List[str]:
    """The guests of which something would be changed. Raises GuestError if one that runs would be refused."""
    state, guests = params["state"], params["guests"]
    if state != "present":
        return [guest["name"] for guest in guests if would_change(state, before.get(guest["name"]))]
    host = host_settings(params)
    return [guest["name"] for guest in guests if guests_here.would_start(connection, specification(guest, {}), host)]


def would_change(state: str, here: Optional[Dict[str, Any]]) -> bool:
    """What check mode says of one guest, which is ``here`` or not, for all states but V(present)."""
    if state in ("absent", "unexpected"):
        return here is not None
    if state == "arrived":
        return not (here and (here["noted"] or {}).get("state") == "running")
    return here is None


def states(listing: Dict[str, Dict[str, Any]], names: List[str]) -> Dict[str, str]:
    """Guests and their states, for the diff."""
    found = {name: listing.get(name) for name in names}
    return {
        name: ((here["noted"] or {}).get("state") or "running") if here else "absent" for name, here in found.items()
    }


def difference(before: Dict[str, str], after: Dict[str, str]) -> Dict[str, str]:
    """A guest a line."""
    both = {"before": before, "after": after}
    return {when: "".join(f"{name}: {state}\n" for name, state in said.items()) for when, said in both.items()}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {
                "type": "str",
                "default": "present",
                "choices": ["present", "expected", "arrived", "unexpected", "absent", "info"],
            },
            "guests": {"type": "list", "elements": "dict", "default": []},
            "identities": {"type": "str", "default": "{}", "no_log": True},
            "evacuation": {"type": "str", "default": ""},
            "domain_type": {"type": "str", "default": "auto", "choices": ["auto", "kvm", "qemu"]},
            "bridge": {"type": "str", "default": "br0"},
            "machine": {"type": "str", "default": "q35"},
            "cpu_model": {"type": "str", "default": ""},
            "translation_cache_mib": {"type": "int", "default": 64},
            "oom_score_adj": {"type": "int"},
            "boot_timeout": {"type": "int", "default": 120},
        },
        supports_check_mode=True,
    )
    params = module.params
    state, guests = params["state"], params["guests"]
    here = socket.gethostname()
    begun = time.time()
    try:
        check_guests(state, guests)
        connection = guests_here.connect()
        before = {one["guest"]: one for one in guests_here.listing(connection)}
        if state == "info":
            module.exit_json(changed=False, guests=list(before.values()), begun=begun, done=time.time())
        names = [guest["name"] for guest in guests]
        if module.check_mode:
            changing = due(params, connection, before)
            seen = states(before, names)
            module.exit_json(
                changed=bool(changing),
                diff=difference(seen, {**seen, **dict.fromkeys(changing, WANTED[state])}),
                guests=[{"guest": name, "state": state} for name in names],
                boot_files=guests_here.boot_files(),
                begun=begun,
                done=time.time(),
            )
        one = act(params, connection)
    except (guests_here.GuestError, InvalidNameError) as error:
        module.fail_json(msg=f"{here}: {error}")
    results, errors = [], []

    def attempt(guest: Dict[str, Any]) -> None:
        try:
            results.append(one(guest))
        except (guests_here.GuestError, GuestLockedError, TapError, OSError) as error:
            errors.append(f"{here}: {error}")
        except Exception as error:  # libvirt's errors, whose class is known only on hosts
            errors.append(f"{here}: guest {guest['name']}: {error}")

    with ThreadPoolExecutor(max_workers=max(1, len(guests))) as pool:
        list(pool.map(attempt, guests))
    results.sort(key=lambda result: str(result["guest"]))
    changed = any([result.pop("changed") for result in results])
    said: Dict[str, Any] = {"changed": changed, "guests": results, "begun": begun, "done": time.time()}
    if state == "arrived":
        said["migrations"] = results
    if state == "expected":
        said["boot_files"] = guests_here.boot_files()
        for guest in guests if errors else []:  # all or none: the playbook ends here
            with contextlib.suppress(Exception):
                guests_here.not_expected(connection, guest["name"])
    if module._diff:
        after = {one["guest"]: one for one in guests_here.listing(connection)}
        said["diff"] = difference(states(before, names), states(after, names))
    for one in results:
        if one.get("pin_differences"):
            errors.append(f"{here}: guest {one['guest']}: {', '.join(one['pin_differences'])}")
        if one.get("devices_missing"):
            errors.append(f"{here}: {one['devices_missing']}")
    if errors:
        module.fail_json(msg="; ".join(errors), **said)
    module.exit_json(**said)


if __name__ == "__main__":
    main()
