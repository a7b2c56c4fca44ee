#!/usr/bin/python
# Copyright: the failavoid authors
# Apache License 2.0 (see LICENSE)
"""Ansible module: whether an inventory and its hosts are fit for failavoid."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: failavoid_site_check
short_description: Judge an inventory and what was found on its hosts
description:
  - Fails with all that is wrong at once, each with the way out, and changes nothing.
  - Runs on the machine that runs Ansible, after the module M(failavoid_survey) has run on the hosts.
version_added: "0.1.0"
options:
  site:
    description: What the inventory says beside its hosts.
    type: dict
    required: true
    suboptions:
      groups:
        description: Group -> hosts, of C(head), C(hypervisor) and the services.
        type: dict
        required: true
      spares:
        description: How many hosts must stay free.
        type: int
        default: 1
      guest_network:
        description: The network that guests get their addresses from.
        type: str
        default: ""
      prefix:
        description: Prefix length of the network that hosts and guests share.
        type: int
        default: 24
      head_address:
        description: The head as guests reach it.
        type: str
        default: ""
      nfs_clients:
        description: Networks that may mount. Empty lets everyone.
        type: list
        elements: str
        default: []
      nfs_store:
        description: Folder of the image store.
        type: path
        default: /var/lib/failavoid/sysimage
      ports:
        description: Variable -> port that a service listens on, on the head.
        type: dict
        default: {}
      compatible:
        description: Hardware class -> other classes whose hosts can run its guests.
        type: dict
        default: {}
      python_version:
        description: The Python that the services are packed for. Empty for any.
        type: str
        default: ""
      mixed_versions:
        description: Whether versions of libvirt and QEMU may differ, because hosts are being upgraded.
        type: bool
        default: false
      job_users:
        description: Users who may run jobs.
        type: list
        elements: str
        default: []
      readers:
        description: Users who may look and change nothing.
        type: list
        elements: str
        default: []
  hosts:
    description: The inventory's hosts.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: Its name in the inventory.
        type: str
        required: true
      address:
        description: Where it is reached.
        type: str
        default: ""
      left_out:
        description: Whether this run leaves it out.
        type: bool
        default: false
      error:
        description: Why it could not be looked at.
        type: str
        default: ""
      asked:
        description: When it was asked, in seconds since the epoch by this machine's clock.
        type: float
        default: 0.0
      hardware_class:
        description: Its hardware class, if the inventory gives one.
        type: str
        default: ""
      cpu_model:
        description: The CPU model that its guests get, if the inventory gives one.
        type: str
        default: ""
      emulated:
        description: Whether the inventory has its guests emulated.
        type: bool
        default: false
      bridge:
        description: The bridge that its guests join.
        type: str
        default: br0
      uplink:
        description: The interface that joins the bridge, if the bridge is to be made.
        type: str
        default: ""
      mac:
        description: The hardware address of the network card that it boots the system image from, if it does.
        type: str
        default: ""
      survey:
        description: What was found there. Without it the host is silent.
        type: dict
  deployer:
    description: What deploying takes from the machine that this runs on, which is not looked at without it.
    type: dict
    suboptions:
      folders:
        description: Folders that are written to.
        type: list
        elements: path
        default: []
      library:
        description: Whether the MPI wrapper's library is built there.
        type: bool
        default: true
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
- name: Judge what was found
  failavoid_site_check:
    site:
      groups: "{{ groups }}"
      guest_network: 10.77.2.0/23
    hosts:
      - name: host01
        address: 10.77.1.1
        survey: "{{ hostvars['host01'].found.survey }}"
  delegate_to: localhost
  run_once: true
"""

RETURN = r"""
problems:
  description: What is wrong, with the way out.
  returned: always
  type: list
  elements: str
"""

import time

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.failavoid.deployer import problems as problems_here
from ansible.module_utils.failavoid.site_check import Host, Site, problems
from ansible.module_utils.failavoid.survey import Survey

SITE = {
    "groups": {"type": "dict", "required": True},
    "spares": {"type": "int", "default": 1},
    "guest_network": {"type": "str", "default": ""},
    "prefix": {"type": "int", "default": 24},
    "head_address": {"type": "str", "default": ""},
    "nfs_clients": {"type": "list", "elements": "str", "default": []},
    "nfs_store": {"type": "path", "default": "/var/lib/failavoid/sysimage"},
    "ports": {"type": "dict", "default": {}},
    "compatible": {"type": "dict", "default": {}},
    "python_version": {"type": "str", "default": ""},
    "mixed_versions": {"type": "bool", "default": False},
    "job_users": {"type": "list", "elements": "str", "default": []},
    "readers": {"type": "list", "elements": "str", "default": []},
}
HOST = {
    "name": {"type": "str", "required": True},
    "address": {"type": "str", "default": ""},
    "left_out": {"type": "bool", "default": False},
    "error": {"type": "str", "default": ""},
    "asked": {"type": "float", "default": 0.0},
    "hardware_class": {"type": "str", "default": ""},
    "cpu_model": {"type": "str", "default": ""},
    "emulated": {"type": "bool", "default": False},
    "bridge": {"type": "str", "default": "br0"},
    "uplink": {"type": "str", "default": ""},
    "mac": {"type": "str", "default": ""},
    "survey": {"type": "dict"},
}
DEPLOYER = {
    "folders": {"type": "list", "elements": "path", "default": []},
    "library": {"type": "bool", "default": True},
}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "site": {"type": "dict", "required": True, "options": SITE},
            "hosts": {"type": "list", "elements": "dict", "required": True, "options": HOST},
            "deployer": {"type": "dict", "options": DEPLOYER},
        },
        supports_check_mode=True,
    )
    now = time.time()
    hosts = [
        Host(**{**host, "survey": Survey(**host["survey"]) if host["survey"] else None})
        for host in module.params["hosts"]
    ]
    deployer = module.params["deployer"]
    found = [
        *(problems_here(**deployer) if deployer else []),
        *problems(Site(**module.params["site"]), hosts, now),
    ]
    if found:
        lines = "\n".join(f"- {problem}" for problem in found)
        module.fail_json(msg=f"Nothing was changed, because of this:\n{lines}", problems=found)
    module.exit_json(changed=False, problems=[])


if __name__ == "__main__":
    main()
