"""A guest as libvirt's domain XML: made for its launch, and changed for where it moves.

Standard library's ElementTree. Formats: https://libvirt.org/formatdomain.html
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional

from . import taps

IDENTITY_ENTRY = "opt/failavoid/identity"
_PCI_ADDRESS = re.compile(r"([0-9a-f]{4}):([0-9a-f]{2}):([0-9a-f]{2})\.([0-7])")


@dataclass
class GuestSpec:
    """What a guest is to be. Memory is in kB; ``cores`` are the host's, one NUMA node's.

    ``hugepage_kb`` is the size of the pages that back its memory, 0 for ordinary ones. ``devices`` are the host's,
    passed through to it, each a ``kind`` and a PCI ``address``.
    """

    name: str
    uuid: str
    memory_kb: int
    cores: List[int]
    numa_node: int
    address: str
    kernel: str
    initrd: str
    cmdline: str
    image: str = ""
    vcpus: int = 1
    user: str = ""
    identity: Dict[str, Any] = field(default_factory=dict)
    hugepage_kb: int = 0
    devices: List[Dict[str, str]] = field(default_factory=list)


@dataclass
class HostSettings:
    """What a host's guests have in common."""

    domain_type: str
    bridge: str = "br0"
    machine: str = "q35"
    cpu_model: str = ""
    translation_cache_mib: int = 64


def guest_xml(spec: GuestSpec, host: HostSettings, state_dir: str) -> str:
    """Return the domain XML of a guest whose state directory on this host is ``state_dir``."""
    domain = ET.Element("domain", type=host.domain_type)
    _text(domain, "name", spec.name)
    _text(domain, "uuid", spec.uuid)
    _text(domain, "memory", str(spec.memory_kb), unit="KiB")
    if spec.hugepage_kb:
        backing = ET.SubElement(ET.SubElement(domain, "memoryBacking"), "hugepages")
        ET.SubElement(backing, "page", size=str(spec.hugepage_kb), unit="KiB")
    _text(domain, "vcpu", str(spec.vcpus), placement="static")
    _pin(domain, spec.cores, spec.numa_node, spec.vcpus)
    sysinfo = ET.SubElement(domain, "sysinfo", type="fwcfg")
    # a file, not a value: QEMU's command line can be read by everybody on the host
    ET.SubElement(sysinfo, "entry", name=IDENTITY_ENTRY, file=f"{state_dir}/identity.json")
    system = ET.SubElement(domain, "os")
    _text(system, "type", "hvm", arch="x86_64", machine=host.machine)
    _text(system, "kernel", spec.kernel)
    _text(system, "initrd", spec.initrd)
    _text(system, "cmdline", spec.cmdline)
    features = ET.SubElement(domain, "features")
    ET.SubElement(features, "acpi")
    if host.domain_type == "qemu":
        # QEMU's own default is 1 GiB for each guest
        cache = ET.SubElement(ET.SubElement(features, "tcg"), "tb-cache", unit="MiB")
        cache.text = str(host.translation_cache_mib)
    _cpu(domain, host)
    for event, action in (("on_poweroff", "destroy"), ("on_reboot", "destroy"), ("on_crash", "destroy")):
        _text(domain, event, action)
    devices = ET.SubElement(domain, "devices")
    interface = ET.SubElement(devices, "interface", type="bridge")
    ET.SubElement(interface, "mac", address=taps.hardware_address(spec.address))
    ET.SubElement(interface, "source", bridge=host.bridge)
    ET.SubElement(interface, "target", dev=taps.tap_name(spec.address))
    ET.SubElement(interface, "model", type="virtio")
    serial = ET.SubElement(devices, "serial", type="file")
    ET.SubElement(serial, "source", path=f"{state_dir}/console.log", append="on")
    # memory that the guest has freed goes back to the host; not a hugepage: who took it would leave the guest without
    reporting = "off" if spec.hugepage_kb else "on"
    ET.SubElement(devices, "memballoon", model="virtio", freePageReporting=reporting)
    random = ET.SubElement(devices, "rng", model="virtio")
    _text(random, "backend", "/dev/urandom", model="random")
    for device in spec.devices:
        devices.append(ET.fromstring(hostdev_xml(device["address"])))
    return ET.tostring(domain, encoding="unicode")


def destination_xml(migratable: str, cores: List[int], numa_node: int) -> str:
    """Return the XML for the destination: the migratable XML with the pins of the new host.

    Nothing that the guest can see is changed. Pinning after the move would be too late: its pages would
    already lie on another NUMA node.
    """
    domain = ET.fromstring(migratable)
    for old in ("cputune", "numatune"):
        element = domain.find(old)
        if element is not None:
            domain.remove(element)
    vcpu = domain.find("vcpu")
    if vcpu is not None:
        vcpu.attrib.pop("cpuset", None)
    _pin(domain, cores, numa_node, int(domain.findtext("vcpu") or 1), before="os")
    return ET.tostring(domain, encoding="unicode")


def is_emulated(xml: str) -> bool:
    """Whether a domain's processors are emulated by QEMU, for lack of hardware virtualisation."""
    return ET.fromstring(xml).get("type") == "qemu"


def vcpus_of(xml: str) -> int:
    """The number of vCPUs that a domain XML names."""
    return int(ET.fromstring(xml).findtext("vcpu") or 1)


def boot_files(xml: str) -> List[str]:
    """Paths of kernel and initial RAM disk in a domain XML: they must be on every host it can move to."""
    domain = ET.fromstring(xml)
    return [path for path in (domain.findtext("os/kernel"), domain.findtext("os/initrd")) if path]


def memory_kb_of(xml: str) -> int:
    """The size of a guest's memory."""
    return _kib(ET.fromstring(xml), "memory") or 0


def hugepage_kb_of(xml: str) -> int:
    """The size of the hugepages that back a guest's memory, 0 where ordinary pages do."""
    page = ET.fromstring(xml).find("memoryBacking/hugepages/page")
    return 0 if page is None else int(page.get("size", 0)) * _UNITS[page.get("unit", "KiB")]


def hostdev_xml(address: str) -> str:
    """The XML of a host's PCI device that is passed through. Raises ValueError for what is no PCI address."""
    parts = _PCI_ADDRESS.fullmatch(address)
    if parts is None:
        raise ValueError(f"{address!r} is not the address of a PCI device: write it as 0000:3b:02.1")
    # managed: libvirt takes the device from its driver, and gives it back
    device = ET.Element("hostdev", mode="subsystem", type="pci", managed="yes")
    names = ("domain", "bus", "slot", "function")
    given = {name: f"0x{part}" for name, part in zip(names, parts.groups())}
    ET.SubElement(ET.SubElement(device, "source"), "address", given)
    return ET.tostring(device, encoding="unicode")


def passed_through(xml: str) -> Dict[str, str]:
    """Name the host's devices that a domain XML passes through to the guest, each with its own XML: they can't move.

    That is every ``hostdev``, and every interface that is a virtual function of a network card. A PCI device's name is
    ``pci ADDRESS``.
    """
    domain = ET.fromstring(xml)
    found = {}
    for device in domain.findall("devices/hostdev") + domain.findall("devices/interface[@type='hostdev']"):
        kind = device.get("type") or "device"
        address = device.find("source/address")
        given = address.attrib if address is not None else {}
        if device.tag == "interface" or kind == "pci":
            place = "{:0>4}:{:0>2}:{:0>2}.{}".format(
                *(given.get(key, "?").replace("0x", "") for key in ("domain", "bus", "slot", "function"))
            )
            name = f"pci {place}"
        else:
            name = f"{kind} {given.get('uuid') or ' '.join(given.values())}".strip()
        found[name] = ET.tostring(device, encoding="unicode")
    return found


# what makes a guest another one; libvirt adds to the rest and resolves names (machine, CPU), so it is not compared
_COMPARED = ("vcpu", "os/kernel", "os/initrd", "os/cmdline", "cpu/model")
_COMPARED_SIZES = ("memory", "features/tcg/tb-cache")
_COMPARED_ATTRIBUTES = (("devices/interface/mac", "address"), ("devices/interface/source", "bridge"))


def differences(wanted: str, found: str) -> List[str]:
    """Say in words in what a running guest's XML, as libvirt gives it, means something else than the wanted one."""
    should, does = ET.fromstring(wanted), ET.fromstring(found)
    said = []

    def compare(what: str, one: Optional[str], other: Optional[str]) -> None:
        if one is not None and one != other:
            said.append(f"{what} {other} instead of {one}")

    compare("type", should.get("type"), does.get("type"))
    for path in _COMPARED_SIZES:
        sizes = [_kib(end, path) for end in (should, does)]
        compare(path, *(None if size is None else f"{size} KiB" for size in sizes))
    compare("pages of", *(f"{hugepage_kb_of(end) or 4} KiB" for end in (wanted, found)))
    for path in _COMPARED:
        compare(path, should.findtext(path), does.findtext(path))
    for path, attribute in _COMPARED_ATTRIBUTES:
        ends = [end.get(attribute) if end is not None else None for end in (should.find(path), does.find(path))]
        compare(f"{path} {attribute}", *ends)
    has = passed_through(found)
    said += [f"no {name}" for name in passed_through(wanted) if name not in has]
    return said


_UNITS = {"KiB": 1, "MiB": 1024, "GiB": 1024**2}


def _kib(domain: ET.Element, path: str) -> Optional[int]:
    size = domain.find(path)
    if size is None:
        return None
    return int(size.text or 0) * _UNITS[size.get("unit", "KiB")]


def _pin(domain: ET.Element, cores: List[int], numa_node: int, vcpus: int, before: str = "") -> None:
    """Pin each vCPU to a core and all memory to the cores' NUMA node, as numactl would."""
    if not cores:
        raise ValueError("a guest needs at least one core to be pinned to")
    cputune = ET.Element("cputune")
    for number in range(vcpus):
        ET.SubElement(cputune, "vcpupin", vcpu=str(number), cpuset=str(cores[number % len(cores)]))
    ET.SubElement(cputune, "emulatorpin", cpuset=",".join(map(str, sorted(set(cores)))))
    numatune = ET.Element("numatune")
    ET.SubElement(numatune, "memory", mode="strict", nodeset=str(numa_node))
    place = len(domain)
    if before:
        place = next((i for i, child in enumerate(domain) if child.tag == before), place)
    domain.insert(place, cputune)
    domain.insert(place + 1, numatune)


def _cpu(domain: ET.Element, host: HostSettings) -> None:
    if host.cpu_model:
        cpu = ET.SubElement(domain, "cpu", mode="custom", match="exact", check="none")
        _text(cpu, "model", host.cpu_model, fallback="forbid")
    elif host.domain_type == "kvm":
        ET.SubElement(domain, "cpu", mode="host-model")


def _text(parent: ET.Element, tag: str, text: str, **attributes: str) -> ET.Element:
    element = ET.SubElement(parent, tag, attributes)
    element.text = text
    return element
