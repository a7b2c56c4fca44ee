#!/usr/bin/python
# Copyright: the failavoid authors
# Apache License 2.0 (see LICENSE)
"""Ansible module: see whether a testbed can be made on this machine."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: failavoid_preflight
short_description: See whether a testbed can be made on this machine
description:
  - Looks at user, system, programs, kernel, memory, disk and network, and changes nothing.
  - Fails with all that stands in the way at once, each with the way out.
version_added: "0.1.0"
options:
  base:
    description: Folder of the testbed.
    type: path
    required: true
  store:
    description: Folder of the image store.
    type: path
    required: true
  bridge:
    description: The bridge that is to connect containers and this machine.
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
    description: The containers, as the module M(failavoid_container) takes them.
    type: list
    elements: dict
    required: true
  memory_share:
    description: Share of the hosts' memory that is in use at once.
    type: float
    default: 1.0
attributes:
  check_mode:
    support: full
    description: It changes nothing.
  diff_mode:
    support: none
    description: It changes nothing.
  idempotent:
    support: full
    description: It changes nothing.
author:
  - The failavoid authors (@failavoid)
"""

EXAMPLES = r"""
- name: Look at this machine
  failavoid_preflight:
    base: /var/lib/failavoid/testbed
    store: /var/lib/failavoid/sysimage
    bridge: failavoid0
    address: 10.77.0.254/16
    containers:
      - {name: host01, node_class: host, address: 10.77.1.1, memory_mib: 2048}
"""

RETURN = r"""
problems:
  description: What stands in the way.
  returned: always
  type: list
  elements: str
"""

import ipaddress
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.failavoid.containers import Container, Testbed
from ansible.module_utils.failavoid.preflight import look, problems


def main() -> None:
    """Run as an Ansible module."""
    module = AnsibleModule(
        argument_spec={
            "base": {"type": "path", "required": True},
            "store": {"type": "path", "required": True},
            "bridge": {"type": "str", "required": True},
            "address": {"type": "str", "required": True},
            "group": {"type": "str", "default": "failavoid"},
            "containers": {"type": "list", "elements": "dict", "required": True},
            "memory_share": {"type": "float", "default": 1.0},
        },
        supports_check_mode=True,
    )
    params = module.params
    interface = ipaddress.IPv4Interface(params["address"])
    testbed = Testbed(
        base=Path(params["base"]),
        store=Path(params["store"]),
        bridge=params["bridge"],
        address=str(interface.ip),
        prefix=interface.network.prefixlen,
        containers=[Container(**item) for item in params["containers"]],
        group=params["group"],
    )
    found = problems(look(testbed), testbed, params["memory_share"])
    if found:
        lines = "\n".join(f"- {problem}" for problem in found)
        module.fail_json(msg=f"The testbed can't be made here; nothing was changed.\n{lines}", problems=found)
    module.exit_json(changed=False, problems=[])


if __name__ == "__main__":
    main()
