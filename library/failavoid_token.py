#!/usr/bin/python
# Copyright: the failavoid authors
# Apache License 2.0 (see LICENSE)
"""Ansible module: make the tokens of hosts from the site's secret."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: failavoid_token
short_description: Make tokens from the site's secret
description:
  - Makes the tokens of many subjects of one role in one call.
  - Runs where the secret is, on the head; delegate to it. The secret itself is not returned.
  - Use C(no_log) with it, because what it returns lets whoever has it speak for the subjects.
version_added: "0.1.0"
options:
  secret:
    description: File with the site's secret.
    type: path
    default: /etc/failavoid/secret
  role:
    description: The role the tokens speak in.
    type: str
    choices: [service, operator, reader, user, host, guest]
    required: true
  subjects:
    description: Whom the tokens speak for, by name.
    type: list
    elements: str
    required: true
attributes:
  check_mode:
    support: full
    description: Nothing is ever changed.
  diff_mode:
    support: none
    description: Nothing is ever changed.
  idempotent:
    support: full
    description: The same secret, role and subject give the same token.
author:
  - The failavoid authors (@failavoid)
"""

EXAMPLES = r"""
- name: Make the tokens of all hosts
  failavoid_token:
    role: host
    subjects: "{{ ansible_play_hosts_all }}"
  delegate_to: "{{ groups['head'][0] }}"
  run_once: true
  no_log: true
  register: tokens
"""

RETURN = r"""
tokens:
  description: The token of each subject.
  returned: success
  type: dict
  sample: {"host01": "host.host01.0.MAC"}
"""

import socket

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.failavoid.names import check_name
from ansible.module_utils.failavoid.tokens import ROLES, mint, read_secret


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "secret": {"type": "path", "default": "/etc/failavoid/secret", "no_log": False},
            "role": {"type": "str", "choices": list(ROLES), "required": True},
            "subjects": {"type": "list", "elements": "str", "required": True},
        },
        supports_check_mode=True,
    )
    path, role, here = module.params["secret"], module.params["role"], socket.gethostname()
    try:
        secret = read_secret(path)
        tokens = {name: mint(secret, role, check_name(role, name)) for name in module.params["subjects"]}
    except OSError as error:
        module.fail_json(
            msg=f"{here}: {path} cannot be read: {error.strerror}. The role service_common makes it on the head: "
            "run it first"
        )
    except ValueError as error:
        module.fail_json(msg=f"{here}: {error}")
    module.exit_json(changed=False, tokens=tokens)


if __name__ == "__main__":
    main()
