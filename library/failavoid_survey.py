#!/usr/bin/python
# Copyright: the failavoid authors
# Apache License 2.0 (see LICENSE)
"""Ansible module: what a host of a site is like."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: failavoid_survey
short_description: See what a host of a site is like
description:
  - Looks at system, clock, processors, memory, network, listening ports and the versions of libvirt and QEMU, in one
    go, and changes nothing. The module M(failavoid_site_check) judges it.
version_added: "0.1.0"
options:
  store:
    description: Folder where the image store is, or will be.
    type: path
    default: /var/lib/failavoid/sysimage
  cpu_model:
    description: The CPU model that guests are to get. Empty asks for none.
    type: str
    default: ""
  users:
    description: Users who are to be known on the host.
    type: list
    elements: str
    default: []
  asked:
    description: When the host is asked, in seconds since the epoch by the clock of the machine that runs Ansible.
    type: float
    default: 0.0
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
- name: Look at the host
  failavoid_survey:
    asked: "{{ now().timestamp() }}"
  register: found
"""

RETURN = r"""
survey:
  description: What was found. What the host does not have is empty.
  returned: success
  type: dict
  contains:
    hostname:
      description: What the host calls itself.
      type: str
    system:
      description: Name and version of its system.
      type: list
      elements: str
    init:
      description: The name of its first process.
      type: str
    python:
      description: The version of the Python that runs the module.
      type: list
      elements: int
    now:
      description: Seconds since the epoch by its clock.
      type: float
    cpu:
      description: The name of its processors.
      type: str
    cpu_flags:
      description: Their features, sorted.
      type: str
    memory_kb:
      description: Its memory in kB.
      type: int
    kvm:
      description: Whether C(/dev/kvm) is there.
      type: bool
    cpu_model_offered:
      description: Whether libvirt offers O(cpu_model) under KVM. None where libvirt is not there to tell.
      type: bool
    versions:
      description: The versions of libvirt and QEMU, if they are installed.
      type: dict
    listeners:
      description: Who listens on which port.
      type: list
      elements: str
    bridges:
      description: Its bridges.
      type: list
      elements: str
    links:
      description: Its network interfaces.
      type: list
      elements: str
    addresses:
      description: Its IPv4 addresses.
      type: list
      elements: str
    file_system:
      description: The kind of file system that the store is, or will be, on.
      type: str
    free_mib:
      description: What is free there, in MiB.
      type: int
    unknown_users:
      description: Those of O(users) that it does not know.
      type: list
      elements: str
    image_there:
      description: Whether a system image is published there.
      type: bool
asked:
  description: What was given, to be held against the host's own clock.
  returned: success
  type: float
"""

import socket
from dataclasses import asdict

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.failavoid.survey import look


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "store": {"type": "path", "default": "/var/lib/failavoid/sysimage"},
            "cpu_model": {"type": "str", "default": ""},
            "users": {"type": "list", "elements": "str", "default": []},
            "asked": {"type": "float", "default": 0.0},
        },
        supports_check_mode=True,
    )
    try:
        survey = asdict(look(*(module.params[name] for name in ("store", "cpu_model", "users"))))
    except (OSError, ValueError, IndexError) as error:
        module.fail_json(msg=f"{socket.gethostname()}: the host can't be looked at: {error}")
    module.exit_json(changed=False, survey=survey, asked=module.params["asked"])


if __name__ == "__main__":
    main()
