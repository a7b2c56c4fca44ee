"""What must hold of an inventory and its hosts before anything is changed on them.

``problems`` judges what the inventory says and what ``survey.look`` found on the hosts: each problem is one sentence
or two, which name the host and the thing, and the way out.
"""

from __future__ import annotations

import ipaddress
import re
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, Dict, Iterator, List, Optional, Tuple

from . import names
from .survey import Survey

SERVICES = ("nfs_server", "monitor", "resource_manager", "controller")
OLDEST_PYTHON = (3, 9)
LIBVIRT_PORT = 16514
# on the head, and who may listen there already: what an earlier run has installed
NFS_PORTS = {111: ("rpcbind", "systemd"), 2049: ("ganesha",), 20048: ("ganesha",)}
NETBOOT_PORTS = {67: ("dnsmasq",), 69: ("dnsmasq",), 4011: ("dnsmasq",)}
LEAST_MEMORY_MIB = 1024
IMAGE_MIB = 2048  # building a root, and the packages
CLOCK_S = 2.0  # by how much clocks may differ
WITHOUT_HANDLES = ("overlay", "tmpfs", "ramfs", "aufs")  # what an NFS server can't export, or what forgets
_READER = re.compile(r"[A-Za-z0-9_-]+")  # a word of a token, whose words are parted by dots
_MAC = re.compile(r"[0-9a-f][02468ace](:[0-9a-f]{2}){5}")  # of one card: with an odd first octet it is a group's


@dataclass
class Host:
    """A host of the inventory, and what was found there."""

    name: str
    address: str = ""
    left_out: bool = False  # by --limit
    error: str = ""  # why nothing was found: it is silent, or would not answer
    asked: float = 0.0  # when it was asked, in seconds since the epoch by the clock of the machine that runs Ansible
    hardware_class: str = ""
    cpu_model: str = ""  # the one its guests get
    emulated: bool = False  # by the inventory's word, not the probe's
    bridge: str = "br0"
    uplink: str = ""
    mac: str = ""  # of the network card that it boots the system image from; empty if it boots from a disk
    survey: Optional[Survey] = None


@dataclass
class Site:
    """What the inventory says beside its hosts."""

    groups: Dict[str, List[str]] = field(default_factory=dict)
    spares: int = 1
    guest_network: str = ""
    prefix: int = 24
    head_address: str = ""
    nfs_clients: List[str] = field(default_factory=list)
    nfs_store: str = "/var/lib/failavoid/sysimage"
    ports: Dict[str, int] = field(default_factory=dict)  # variable -> port on the head
    compatible: Dict[str, List[str]] = field(default_factory=dict)
    python_version: str = ""  # that the services are packed for, as 3.11
    mixed_versions: bool = False  # while hosts are being upgraded
    job_users: List[str] = field(default_factory=list)
    readers: List[str] = field(default_factory=list)


def problems(site: Site, hosts: List[Host], now: float) -> List[str]:
    """Return all that is wrong. ``now`` is the time, by the clock of the machine that runs Ansible."""
    by_name = {host.name: host for host in hosts}
    heads = [by_name[name] for name in site.groups.get("head", []) if name in by_name]
    workers = [by_name[name] for name in site.groups.get("hypervisor", []) if name in by_name]
    found = [*_groups(site), *_users(site), *_names(hosts), *_silent(hosts), *_addresses([*heads, *workers])]
    found += [*_networks(site, heads, workers), *_netboot(site, heads, workers)]
    for host in hosts:
        found += _of_any(host, now)
    for head in heads:
        found += _of_head(site, head)
    for worker in workers:
        found += _of_worker(worker)
    return [*found, *_together(site, workers)]


# -- the inventory -----------------------------------------------------------------------------------------


def _groups(site: Site) -> Iterator[str]:
    head, workers = site.groups.get("head", []), site.groups.get("hypervisor", [])
    if len(head) != 1:
        yield f"The inventory needs exactly one host in the group 'head'; it has {len(head)}."
    for group in SERVICES:
        if site.groups.get(group, []) != head:
            yield (
                f"The group '{group}' must hold the head, as in '{group}: {{children: {{head: {{}}}}}}'; it holds "
                f"{', '.join(site.groups.get(group, [])) or 'nobody'}."
            )
    if site.spares < 1:
        yield f"failavoid_spares is {site.spares}; without a spare nothing can be evacuated. Set it to 1 or more."
    elif len(workers) <= site.spares:
        yield (
            f"The inventory has no spare: 'hypervisor' lists {len(workers)} host(s) and {site.spares} must stay free "
            "to take over for a failing one. Add a host, or lower failavoid_spares."
        )


def _users(site: Site) -> Iterator[str]:
    """Users whose names no token, or no job, can carry."""
    for user in site.job_users:
        try:
            names.check_name("user", user)
        except names.InvalidNameError as error:
            yield (
                f"service_common_job_users: {error}. Give them an account of such a name ('usermod --login' renames "
                "one), or take them out of the list."
            )
    for user in site.readers:
        if user not in site.job_users and not _READER.fullmatch(user):
            yield (
                f"service_common_readers: user name {user!r} is not allowed: use the characters a-z, A-Z, 0-9, '-' and "
                "'_'. Give them an account of such a name, or take them out of the list."
            )
    for variable, users in (("service_common_job_users", site.job_users), ("service_common_readers", site.readers)):
        if "root" in users:
            yield (
                f"{variable} lists root, whose token is the administrator's and who runs no jobs: take root out of the "
                "list."
            )


def _names(hosts: List[Host]) -> Iterator[str]:
    for host in hosts:
        try:
            names.check_name("host", host.name)
        except names.InvalidNameError as error:
            yield f"{error}. Name it differently in the inventory; ansible_host says where it is."
    for address, same in _shared((host.address, host.name) for host in hosts):
        yield f"{' and '.join(same)} have the same address {address}: give each its own ansible_host."
    answered = [host for host in hosts if host.survey is not None]
    for hostname, same in _shared((host.survey.hostname, host.name) for host in answered if host.survey):
        yield (
            f"{' and '.join(same)} call themselves {hostname}: libvirt tells hosts apart by their names, so give "
            "each its own with 'hostnamectl set-hostname'."
        )
    for host in answered:
        if host.survey and host.survey.hostname.partition(".")[0] == "localhost":
            yield (
                f"{host.name} calls itself localhost, to which no guest can be moved: 'hostnamectl set-hostname "
                f"{host.name}'."
            )


def _silent(hosts: List[Host]) -> Iterator[str]:
    silent = [host.name for host in hosts if not host.left_out and host.survey is None and not host.error]
    if silent:
        yield (
            f"These hosts do not answer over SSH: {', '.join(silent)}. Check that they run, that their ansible_host is "
            "right, and that this machine's key is accepted there; or leave them out with --limit."
        )
    for host in hosts:
        if host.error:
            yield f"{host.name} could not be looked at: {host.error}"


def _addresses(hosts: List[Host]) -> Iterator[str]:
    named = [host.name for host in hosts if _address(host.address) is None]
    if named:
        yield (
            f"ansible_host of {', '.join(named)} is not set, or is a name: give the address at which hosts reach each "
            "other. Libvirt listens there, hosts know the head by it, and boot with it."
        )


def _networks(site: Site, heads: List[Host], workers: List[Host]) -> Iterator[str]:
    if not site.guest_network:
        yield (
            "resource_manager_guest_network is not set. Give the network guests get their addresses from, such as "
            "10.77.2.0/23."
        )
        return
    try:
        guests = ipaddress.ip_network(site.guest_network)
    except ValueError as error:
        yield f"resource_manager_guest_network is no network: {error}. Write it as 10.77.2.0/23."
        return
    addressed = [(host, address) for host in [*heads, *workers] for address in [_address(host.address)] if address]
    inside = [host.name for host, address in addressed if address in guests]
    if inside:
        yield (
            f"{', '.join(inside)}: their addresses lie in the guests' network {guests}: give guests a part of the "
            "network that no host is in (resource_manager_guest_network)."
        )
    head = _address(site.head_address)
    if head:
        common = ipaddress.ip_network(f"{head}/{site.prefix}", strict=False)
        if guests.version != common.version or not guests.subnet_of(common):  # type: ignore[arg-type]
            yield (
                f"The guests' network {guests} is not part of the head's network {common}, in which guests are "
                "bridged: correct resource_manager_guest_network or resource_manager_prefix."
            )
    if site.nfs_clients:
        allowed = [network for network in map(_network, site.nfs_clients) if network]
        shut_out = [host.name for host, address in addressed if not any(address in network for network in allowed)]
        if not any(guests.version == one.version and guests.subnet_of(one) for one in allowed):
            shut_out.append(f"guests ({guests})")
        if shut_out:
            yield (
                f"nfs_server_clients shuts out {', '.join(shut_out)}, which boot or mount from the head: add their "
                "networks."
            )


def _netboot(site: Site, heads: List[Host], workers: List[Host]) -> Iterator[str]:
    """What is wrong with hosts that boot the system image over the network."""
    servers = site.groups.get("netboot_server", [])
    booted = [host for host in workers if host.mac]
    if servers and servers != [head.name for head in heads]:
        yield (
            "The group 'netboot_server' must hold the head, where the system image is, as in 'netboot_server: "
            f"{{children: {{head: {{}}}}}}'; it holds {', '.join(servers)}."
        )
    if servers and not booted:
        yield (
            "There is a netboot_server, and no host has a netboot_mac, so that nobody would be answered: give it to "
            "the hosts that boot over the network, or take the group away."
        )
    if booted and not servers:
        yield (
            f"{', '.join(host.name for host in booted)}: netboot_mac is set, and nobody serves what they boot: add "
            "'netboot_server: {children: {head: {}}}' to the inventory."
        )
    for host in booted:
        if host.mac.isdigit():
            yield (
                f"{host.name}: netboot_mac is the number {host.mac}, which is what YAML makes of some hardware "
                "addresses: write it in quotes."
            )
        elif not _MAC.fullmatch(host.mac.lower()):
            yield (
                f"{host.name}: netboot_mac is {host.mac!r}, which is not the hardware address of a network card: write "
                "it as '52:54:00:12:34:56'."
            )
    for mac, same in _shared((host.mac.lower(), host.name) for host in booted):
        yield f"{' and '.join(same)} have the same netboot_mac {mac}: give each its own."


# -- hosts by themselves -----------------------------------------------------------------------------------


def _of_any(host: Host, now: float) -> Iterator[str]:
    survey = host.survey
    if survey is None:
        return
    if tuple(survey.python) < OLDEST_PYTHON:
        yield f"{host.name} has Python {'.'.join(map(str, survey.python))}; 3.9 or later is needed."
    if survey.init != "systemd":
        yield f"{host.name} was started by {survey.init}, not by systemd, which runs failavoid's services and libvirt."
    if survey.memory_kb >> 10 < LEAST_MEMORY_MIB:
        yield f"{host.name} has {survey.memory_kb >> 10} MiB of memory; it needs {LEAST_MEMORY_MIB} MiB for itself."
    if host.asked and not host.asked - CLOCK_S <= survey.now <= now + CLOCK_S:
        off = survey.now - (host.asked if survey.now < host.asked else now)
        yield (
            f"{host.name}'s clock is {abs(off):.0f} s {'ahead of' if off > 0 else 'behind'} this machine's: let both "
            "keep time (chrony, systemd-timesyncd)."
        )


def _of_head(site: Site, head: Host) -> Iterator[str]:
    if head.survey is None:
        return
    own = {port: ("failavoid-",) for port in site.ports.values()}
    fixed = {**NFS_PORTS, **(NETBOOT_PORTS if site.groups.get("netboot_server") else {})}
    for ports, way_out in ((own, f", or give the services other ports ({', '.join(site.ports)})"), (fixed, "")):
        taken = [
            listener.split(" ", 1)[1]
            for port, names in ports.items()
            for listener in _listening(head.survey, port, names)
        ]
        if taken:
            yield (
                f"Ports that failavoid needs on {head.name} are taken by others: {'; '.join(taken)}. End what listens "
                f"there{way_out}."
            )
    has = ".".join(map(str, head.survey.python))
    if site.python_version not in ("", has):
        yield (
            f"{head.name} has Python {has}, and the services are packed for {site.python_version}: set "
            f"service_common_python_version to {has}, in quotes."
        )
    if head.survey.unknown_users:
        yield (
            f"{head.name} does not know {', '.join(head.survey.unknown_users)}, who shall run jobs or look on: make "
            "their accounts there, or take them out of service_common_job_users and service_common_readers."
        )
    if head.survey.file_system in WITHOUT_HANDLES:
        yield (
            f"{head.name}: {site.nfs_store} is on a file system ({head.survey.file_system}) that NFS can't export: "
            "mount one of the kind ext4 or xfs there."
        )
    if not head.survey.image_there and head.survey.free_mib < IMAGE_MIB:
        yield (
            f"{head.name} has {head.survey.free_mib} MiB free for {site.nfs_store}; the system image needs "
            f"{IMAGE_MIB} MiB."
        )


def _of_worker(host: Host) -> Iterator[str]:
    survey = host.survey
    if survey is None:
        return
    if host.uplink:
        if host.uplink not in survey.links:
            yield (
                f"{host.name}: network_uplink is {host.uplink}, which it does not have; it has "
                f"{', '.join(survey.links)}."
            )
    elif host.bridge not in survey.bridges:
        yield (
            f"{host.name} has no bridge {host.bridge}: set network_uplink to the interface that shall join it, or "
            "make it with the host's own network set-up."
        )
    address = _address(host.address)
    if address and survey.addresses and str(address) not in survey.addresses:
        yield (
            f"{host.name} is reached at {address}, which is none of its own addresses "
            f"({', '.join(survey.addresses)}): hosts reach each other at ansible_host, so it can't be a forwarded one."
        )
    if host.cpu_model and survey.cpu_model_offered is False and not host.emulated:
        yield (
            f"{host.name} does not offer guest_cpu_model {host.cpu_model}: guests could neither start nor arrive "
            "there. Choose a model that 'virsh domcapabilities' calls usable on every host."
        )
    taken = list(_listening(survey, LIBVIRT_PORT, ("libvirtd", "virtproxyd", "systemd")))
    if taken:
        yield f"{host.name}: port {LIBVIRT_PORT}, where libvirt is to listen, is taken by others: {'; '.join(taken)}."


# -- hosts together ----------------------------------------------------------------------------------------


def _together(site: Site, workers: List[Host]) -> Iterator[str]:
    """Whether guests of each host have somewhere to go."""
    seen = [host for host in workers if host.survey is not None]
    for program in () if site.mixed_versions else ("libvirt", "qemu"):
        versions: Dict[str, List[str]] = defaultdict(list)
        for host in seen:
            version = host.survey.versions.get(program) if host.survey else None
            if version:
                versions[version].append(host.name)
        if len(versions) > 1:
            listed = "; ".join(f"{version} on {', '.join(on)}" for version, on in sorted(versions.items()))
            yield (
                f"Hosts have different versions of {program}: {listed}. Guests move to the same or a newer version "
                "only, so they would not get back: bring all to one, or set failavoid_mixed_versions while you do."
            )
    classes: Dict[str, List[Host]] = defaultdict(list)
    for host in seen:
        classes[_class(host)].append(host)
    for name, members in classes.items():
        others = [other for other in site.compatible.get(name, []) if other in classes]
        if len(members) == 1 and len(seen) == len(workers) > 1 and not others:
            yield (
                f"{members[0].name} is the only host of its hardware class ({name}): its guests could move nowhere. "
                "Set guest_cpu_model to a model that all hosts offer, failavoid_hardware_class, or "
                "resource_manager_compatible."
            )
        yield from _flags(members)


def _class(host: Host) -> str:
    """A host's hardware class, by the rule of the role resource_manager."""
    alike = bool(host.cpu_model) or host.emulated or not (host.survey and host.survey.kvm)
    return host.hardware_class or ("all alike" if alike else (host.survey.cpu if host.survey else ""))


def _flags(members: List[Host]) -> Iterator[str]:
    """Guests that get their host's own processor move only where all its features are."""
    own = [host for host in members if host.survey and host.survey.kvm and not host.cpu_model and not host.emulated]
    features = {host.name: set(host.survey.cpu_flags.split()) for host in own if host.survey}
    everywhere = set.intersection(*features.values()) if features else set()
    more = {name: sorted(has - everywhere) for name, has in features.items() if has - everywhere}
    if more:
        listed = "; ".join(f"{name} has {' '.join(extra[:8])}" for name, extra in more.items())
        yield (
            f"Processors of one hardware class differ: {listed}, which others do not have. Guests that use it could "
            "not move there: set guest_cpu_model to a model that all offer, or bring firmware and microcode to one "
            "version."
        )


# -- small things ------------------------------------------------------------------------------------------


def _shared(pairs: Any) -> List[Tuple[str, List[str]]]:
    """What several have in common: value -> names, for values that more than one has."""
    by_value: Dict[str, List[str]] = defaultdict(list)
    for value, name in pairs:
        if value:
            by_value[value].append(name)
    return [(value, same) for value, same in by_value.items() if len(same) > 1]


def _address(text: str) -> Any:
    """An IP address; None for a name, which only the resolver knows."""
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _network(text: str) -> Any:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None


def _listening(survey: Survey, port: int, own: Tuple[str, ...]) -> Iterator[str]:
    """Who else listens on a port than those whose names begin like that."""
    for listener in survey.listeners:
        address = listener.split(" ", 2)[1]
        if address.rpartition(":")[2] == str(port) and not any(f'"{name}' in listener for name in own):
            yield listener
