#!/usr/bin/python
# Copyright: the failavoid authors
# Apache License 2.0 (see LICENSE)
"""Ansible module: the bridge that hosts and guests share."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: failavoid_interface
short_description: Have the bridge that hosts and guests share
description:
  - Checks that a bridge is there, has the host's address and is up, and makes it from an uplink where one is given.
  - Addresses and routes of the uplink go over to the bridge in one step of C(ip), so that the connection lives on.
version_added: "0.1.0"
options:
  name:
    description: Name of the bridge.
    type: str
    required: true
  uplink:
    description: Interface that joins the bridge. Empty leaves the bridge's making to the host.
    type: str
    default: ""
  address:
    description: Address the bridge must have. Empty for any.
    type: str
    default: ""
attributes:
  check_mode:
    support: full
    description: Says what would be changed.
  diff_mode:
    support: full
    description: Shows the bridge's ports and addresses before and after.
  idempotent:
    support: full
    description: A bridge that is as wanted is left alone.
author:
  - The failavoid authors (@failavoid)
"""

EXAMPLES = r"""
- name: Have a bridge that takes over eth0
  failavoid_interface:
    name: br0
    uplink: eth0
"""

RETURN = r"""
interface:
  description: The bridge as it is now, empty if check mode found none.
  returned: success
  type: dict
  contains:
    name:
      description: Its name.
      type: str
    ports:
      description: The interfaces that have joined it, without guests' taps.
      type: list
      elements: str
    addresses:
      description: Its IPv4 addresses with their prefix lengths.
      type: list
      elements: str
    up:
      description: Whether it is up.
      type: bool
"""

import json
import socket
import subprocess
from pathlib import Path
from typing import Any, Dict, List

from ansible.module_utils.basic import AnsibleModule


class InterfaceError(Exception):
    """Something about an interface that can't be put right from here."""


def ip(*arguments: str, batch: str = "") -> Any:
    """Run iproute2 and return what it says. Raises InterfaceError."""
    command = ["ip", *(("-json",) if not batch else ()), *arguments]
    done = subprocess.run(command, input=batch, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InterfaceError(f"{' '.join(command)}: {done.stderr.strip()}")
    return json.loads(done.stdout) if done.stdout.strip().startswith("[") else []


def addresses(name: str) -> List[Dict[str, Any]]:
    """The IPv4 addresses of an interface."""
    found = ip("-4", "address", "show", "dev", name)
    return [one for link in found for one in link.get("addr_info", [])]


def describe(name: str) -> Dict[str, Any]:
    """A bridge's ports and addresses; empty if there is none of that name."""
    folder = Path("/sys/class/net") / name
    if not folder.exists():
        return {}
    if not (folder / "bridge").is_dir():
        raise InterfaceError(f"{name} is there and is no bridge: give another name, or rename that interface")
    return {
        "name": name,
        "ports": sorted(port.name for port in (folder / "brif").iterdir() if not port.name.startswith("vnet")),
        "addresses": [f"{one['local']}/{one['prefixlen']}" for one in addresses(name)],
        "up": bool(int((folder / "flags").read_text(), 16) & 1),
    }


def taken_over(name: str, uplink: str, before: Dict[str, Any]) -> Dict[str, Any]:
    """The bridge as it will be once the uplink has joined it."""
    return {
        "name": name,
        "ports": sorted([*before.get("ports", []), uplink]),
        "addresses": [
            *before.get("addresses", []),
            *(f"{one['local']}/{one['prefixlen']}" for one in addresses(uplink)),
        ],
        "up": True,
    }


def commands(name: str, uplink: str, there: bool) -> str:
    """What ip has to do so that the bridge takes over the uplink, as one batch.

    The host is never without its address: its root may come over this very network, and with it the next page of ip.
    """
    lines = [] if there else [f"link add name {name} type bridge"]
    lines.append(f"link set dev {name} address {(Path('/sys/class/net') / uplink / 'address').read_text().strip()}")
    held = addresses(uplink)
    routes = [route for route in ip("-4", "route", "show", "dev", uplink) if route.get("gateway")]
    lines.append(f"link set dev {name} up")
    lines += [f"address add {one['local']}/{one['prefixlen']} brd + dev {name}" for one in held]
    lines.append(f"link set dev {uplink} master {name}")
    lines += [f"address del {one['local']}/{one['prefixlen']} dev {uplink}" for one in held]
    lines += [f"route replace {route['dst']} via {route['gateway']} dev {name}" for route in routes]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "uplink": {"type": "str", "default": ""},
            "address": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    name, uplink, address = (module.params[key] for key in ("name", "uplink", "address"))
    try:
        before = describe(name)
        if not before and not uplink:
            raise InterfaceError(
                f"there is no bridge {name}: set network_uplink to the interface it shall take over, "
                "or make it with the host's own network set-up"
            )
        changed = bool(uplink) and uplink not in before.get("ports", [])
        if changed and not (Path("/sys/class/net") / uplink).exists():
            raise InterfaceError(f"network_uplink is {uplink}, which this host does not have")
        if changed and not module.check_mode:
            ip("-batch", "-", batch=commands(name, uplink, bool(before)))
        after = taken_over(name, uplink, before) if changed and module.check_mode else describe(name)
        if address and after and not any(one.split("/")[0] == address for one in after["addresses"]):
            raise InterfaceError(f"bridge {name} has not the host's address {address} but {after['addresses']}")
    except (InterfaceError, OSError) as error:
        module.fail_json(msg=f"{socket.gethostname()}: {error}")
    module.exit_json(
        changed=changed,
        interface=before if module.check_mode else after,
        diff={"before": json.dumps(before, indent=1) + "\n", "after": json.dumps(after, indent=1) + "\n"},
    )


if __name__ == "__main__":
    main()
