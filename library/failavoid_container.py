#!/usr/bin/python
# Copyright: the failavoid authors
# Apache License 2.0 (see LICENSE)
"""Ansible module: hosts as containers on this machine."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: failavoid_container
short_description: Run hosts as containers on this machine
description:
  - Starts systemd-nspawn containers over the current system image, each with its memory limit, its own figures in
    C(/proc), and a bridge that holds its address. They answer on SSH when the module returns, and outlive it.
  - Containers that run with the declared settings are left alone, also when the image has changed since they booted.
  - What an interrupted run left behind (mounts, control groups, bridges, processes) is coped with.
version_added: "0.1.0"
options:
  state:
    description:
      - With V(started) the containers run, and no others of the testbed.
      - With V(absent) nothing of the testbed is left, declared in O(containers) or not. The image store stays.
    type: str
    choices: [started, absent]
    default: started
  base:
    description: Folder of the testbed.
    type: path
    required: true
  store:
    description: Folder of the image store.
    type: path
    required: true
  bridge:
    description: The bridge that connects containers and this machine.
    type: str
    required: true
  address:
    description: This machine's address on the bridge, with the prefix's length.
    type: str
    required: true
  group:
    description: The control group (where systemd runs the machine, the slice) that all of the testbed runs in.
    type: str
    default: failavoid
  containers:
    description: The containers.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name of the host.
        type: str
        required: true
      node_class:
        description: Class of the system image.
        type: str
        required: true
      address:
        description: Its address.
        type: str
        required: true
      memory_mib:
        description: Its memory in MiB.
        type: int
        required: true
      binds:
        description: Folders of this machine to show in it, as V(SOURCE) or V(SOURCE:TARGET).
        type: list
        elements: str
        default: []
      nice:
        description: How nice its processes are to those of other containers, -20 to 19.
        type: int
        default: 0
attributes:
  check_mode:
    support: full
    description: Says which containers would be started, or whether there is anything to remove.
  diff_mode:
    support: none
    description: Containers have no text to compare.
  idempotent:
    support: full
    description: Running containers with the declared settings are left alone.
author:
  - The failavoid authors (@failavoid)
"""

EXAMPLES = r"""
- name: Run two hosts
  failavoid_container:
    base: /var/lib/failavoid/testbed
    store: /var/lib/failavoid/sysimage
    bridge: failavoid0
    address: 10.77.0.254/16
    containers:
      - {name: host01, node_class: host, address: 10.77.1.1, memory_mib: 2048}
      - {name: host02, node_class: host, address: 10.77.1.2, memory_mib: 2048}
"""

RETURN = r"""
started:
  description: Containers that were started.
  returned: with O(state=started)
  type: list
  elements: str
made:
  description: What else was made.
  returned: with O(state=started)
  type: list
  elements: str
removed:
  description: What was removed.
  returned: always
  type: list
  elements: str
"""

import ipaddress
from pathlib import Path
from typing import Any, Dict

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.failavoid import cgroups, containers
from ansible.module_utils.failavoid.names import InvalidNameError, check_name


def started(testbed: containers.Testbed, check: bool) -> Dict[str, Any]:
    """Start the containers that do not run as declared, remove those that are not declared."""
    due = [c for c in testbed.containers if not containers.is_current(testbed, c)]
    removed = containers.undeclared(testbed)
    if check:
        return {"changed": bool(due or removed), "started": [c.name for c in due], "made": [], "removed": removed}
    for name in removed:
        containers.stop(testbed, name)
    made = containers.prepare(testbed)
    # asked again, because a new lxcfs does not reach containers that looked at the old one
    due = [c for c in testbed.containers if not containers.is_current(testbed, c)]
    for container in due:
        containers.start(testbed, container)
    for container in due:
        containers.await_ready(testbed, container)
    changed = bool(due or made or removed)
    return {"changed": changed, "started": [c.name for c in due], "made": made, "removed": removed}


def absent(testbed: containers.Testbed, check: bool) -> Dict[str, Any]:
    """Remove everything of the testbed."""
    if check:
        there = testbed.base.exists() or testbed.groups.groups() or Path("/sys/class/net", testbed.bridge).exists()
        return {"changed": bool(there), "removed": []}
    removed = containers.clean(testbed)
    return {"changed": bool(removed), "removed": removed}


def main() -> None:
    """Run as an Ansible module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["started", "absent"], "default": "started"},
            "base": {"type": "path", "required": True},
            "store": {"type": "path", "required": True},
            "bridge": {"type": "str", "required": True},
            "address": {"type": "str", "required": True},
            "group": {"type": "str", "default": "failavoid"},
            "containers": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "name": {"type": "str", "required": True},
                    "node_class": {"type": "str", "required": True},
                    "address": {"type": "str", "required": True},
                    "memory_mib": {"type": "int", "required": True},
                    "binds": {"type": "list", "elements": "str", "default": []},
                    "nice": {"type": "int", "default": 0},
                },
            },
        },
        supports_check_mode=True,
    )
    params = module.params
    try:
        interface = ipaddress.IPv4Interface(params["address"])
        testbed = containers.Testbed(
            base=Path(params["base"]),
            store=Path(params["store"]),
            bridge=params["bridge"],
            address=str(interface.ip),
            prefix=interface.network.prefixlen,
            containers=[containers.Container(**item) for item in params["containers"]],
            group=params["group"],
        )
        for container in testbed.containers:
            check_name("host", container.name)
        act = started if params["state"] == "started" else absent
        with containers.locked():
            result = act(testbed, module.check_mode)
    except (containers.ContainerError, cgroups.CgroupError, InvalidNameError, ValueError, OSError) as error:
        module.fail_json(msg=f"testbed: {error}")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
