#!/usr/bin/python
# Copyright: the failavoid authors
# Apache License 2.0 (see LICENSE)
"""Ansible module: what a host offers to guests."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: failavoid_numa_info
short_description: Find out what a host offers to guests
description:
  - Reads cores, NUMA nodes and memory of a host, and finds by starting a probe guest whether it runs KVM guests.
    C(/dev/kvm) alone proves nothing, it can be there and not work.
  - Keeps what it found in a file on the host, so that the probe is not started again.
version_added: "0.1.0"
options:
  domain_type:
    description: V(auto) starts the probe, V(kvm) and V(qemu) are taken as given.
    type: str
    choices: [auto, kvm, qemu]
    default: auto
  cores:
    description: The cores guests may use. Empty takes all of the host's.
    type: list
    elements: int
    default: []
  devices:
    description: PCI addresses of the devices that can be passed through to guests, by their kind.
    type: dict
    default: {}
  path:
    description: Where the facts are kept on the host.
    type: path
    default: /etc/failavoid/host.json
attributes:
  check_mode:
    support: full
    description: Nothing is probed or written if the file is there; without it the probe runs, which changes nothing.
  diff_mode:
    support: full
    description: Shows the facts before and after.
  idempotent:
    support: full
    description: The same host gives the same facts.
author:
  - The failavoid authors (@failavoid)
"""

EXAMPLES = r"""
- name: Find out what the host offers to guests
  failavoid_numa_info:
  register: facts
"""

RETURN = r"""
host:
  description: What was found.
  returned: success
  type: dict
  contains:
    domain_type:
      description: V(kvm) or V(qemu).
      type: str
    probed:
      description: What the probe found, none if none was started.
      type: str
    cores:
      description: The cores guests may use.
      type: list
      elements: int
    numa:
      description: NUMA node -> its cores, of those that guests may use.
      type: dict
    memory_kb:
      description: The host's memory in kB.
      type: int
    hugepages:
      description: NUMA node -> size of a hugepage in kB -> how many are set aside, of the nodes that guests may use.
      type: dict
    devices:
      description: PCI addresses of what can be passed through to guests, by its kind.
      type: dict
    cpu:
      description: The name of its processors.
      type: str
boot_id:
  description:
    - The boot_id of the kernel that the host runs on, which hosts that are containers on one machine share.
    - Empty where it can't be told. It is another after each boot, so it is not among what is kept.
  returned: success
  type: str
"""

import json
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Dict, List, Optional

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.failavoid.devices import wrong_declaration
from ansible.module_utils.failavoid.hugepages import NODES, set_aside
from ansible.module_utils.failavoid.pinning import parse_list

PROBE_S = 10
QEMU = "/usr/bin/qemu-system-x86_64"


def numa_nodes(cores: List[int]) -> Dict[str, List[int]]:
    """NUMA nodes and their cores, of those in ``cores`` if it is not empty."""
    nodes = {}
    for node in sorted(NODES.glob("node[0-9]*"), key=lambda path: int(path.name[4:])):
        there = parse_list((node / "cpulist").read_text())
        chosen = [core for core in there if not cores or core in cores]
        if chosen:
            nodes[node.name[4:]] = chosen
    return nodes


def memory_kb() -> int:
    """The host's memory, by its own /proc/meminfo."""
    return int(Path("/proc/meminfo").read_text().split("MemTotal:")[1].split()[0])


def cpu_model() -> str:
    """The processors' name, as the kernel gives it; empty where it gives none."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return " ".join(value.split())
    return ""


def runs_kvm() -> bool:
    """Start a guest without a disk under KVM: its firmware writes to the debug port once code really runs."""
    if not Path("/dev/kvm").exists() or not Path(QEMU).exists():
        return False
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder) / "firmware"
        command = [QEMU, "-machine", "q35,accel=kvm", "-cpu", "host", "-m", "64", "-display", "none", "-nodefaults"]
        command += ["-chardev", f"file,id=d,path={said}", "-device", "isa-debugcon,iobase=0x402,chardev=d"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as probe:
            try:
                probe.wait(PROBE_S if not _speaks(said, probe) else 0.01)
            except subprocess.TimeoutExpired:
                probe.kill()
        return said.exists() and said.stat().st_size > 0


def _speaks(said: Path, probe: subprocess.Popen) -> bool:
    """Wait until the probe's firmware has written something, it has ended, or the time is over."""
    for _ in range(PROBE_S * 10):
        if said.exists() and said.stat().st_size > 0:
            return True
        try:
            probe.wait(0.1)
        except subprocess.TimeoutExpired:
            continue
        return False
    return False


def boot_id() -> str:
    """The kernel's own boot_id; empty where it can't be told.

    What runs containers puts an id of the container's own over that file, but not into a /proc that is mounted anew.
    """
    script = 'mount -t proc proc "$1" && cat "$1/sys/kernel/random/boot_id"'
    with tempfile.TemporaryDirectory() as folder:
        try:  # a mount that nobody else sees, and that ends with the command
            said = subprocess.run(
                ["unshare", "--mount", "sh", "-c", script, "sh", folder],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        except OSError:
            return ""
    return said.stdout.strip()


def read(path: Path) -> Optional[Dict[str, Any]]:
    """The facts kept earlier, None if there are none."""
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        return None


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "domain_type": {"type": "str", "default": "auto", "choices": ["auto", "kvm", "qemu"]},
            "cores": {"type": "list", "elements": "int", "default": []},
            "devices": {"type": "dict", "default": {}},
            "path": {"type": "path", "default": "/etc/failavoid/host.json"},
        },
        supports_check_mode=True,
    )
    path, wanted = Path(module.params["path"]), module.params["domain_type"]
    here = socket.gethostname()
    before = read(path)
    domain_type = wanted
    if wanted == "auto":
        probed = (before or {}).get("probed")
        domain_type = probed or ("kvm" if runs_kvm() else "qemu")
    numa = numa_nodes(module.params["cores"])
    missing = sorted(set(module.params["cores"]) - {core for cores in numa.values() for core in cores})
    if missing:
        module.fail_json(
            msg=f"{here}: hypervisor_cores names cores this host does not have: {missing}; it has {numa_nodes([])}"
        )
    wrong = wrong_declaration(module.params["devices"])
    if wrong:
        module.fail_json(msg=f"{here}: {wrong}")
    after = {
        "domain_type": domain_type,
        "probed": domain_type if wanted == "auto" else (before or {}).get("probed"),
        "cores": sorted(core for cores in numa.values() for core in cores),
        "numa": numa,
        "memory_kb": memory_kb(),
        "hugepages": {node: pages for node in numa for pages in [set_aside(node)] if pages},
        "devices": module.params["devices"],
        "cpu": cpu_model(),
    }
    changed = before != after
    if changed and not module.check_mode:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        path.write_text(json.dumps(after, indent=1) + "\n")
    module.exit_json(
        changed=changed,
        host=after,
        boot_id=boot_id(),
        diff={"before": json.dumps(before, indent=1) + "\n", "after": json.dumps(after, indent=1) + "\n"},
    )


if __name__ == "__main__":
    main()
