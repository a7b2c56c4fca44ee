"""A guest as libvirt's domain XML: made for its launch, and changed for where it moves.

Standard library's ElementTree. Formats: https://libvirt.org/formatdomain.html
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional

from . import taps

IDENTITY_ENTRY = "opt/failavoid/identity"


@dataclass
class GuestSpec:
    """What a guest is to be. Memory is in kB; ``cores`` are the host's, one NUMA node's."""

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
    # memory that the guest has freed goes back to the host
    ET.SubElement(devices, "memballoon", model="virtio", freePageReporting="on")
    random = ET.SubElement(devices, "rng", model="virtio")
    _text(random, "backend", "/dev/urandom", model="random")
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


def passed_through(xml: str) -> List[str]:
    """Name the host's devices that a domain XML passes through to the guest: they can't move with it.

    That is every ``hostdev``, and every interface that is a virtual function of a network card.
    """
    domain = ET.fromstring(xml)
    found = []
    for device in domain.findall("devices/hostdev") + domain.findall("devices/interface[@type='hostdev']"):
        kind = device.get("type") or "device"
        address = device.find("source/address")
        given = address.attrib if address is not None else {}
        if device.tag == "interface" or kind == "pci":
            place = "{:0>4}:{:0>2}:{:0>2}.{}".format(
                *(given.get(key, "?").replace("0x", "") for key in ("domain", "bus", "slot", "function"))
            )
            found.append(f"pci {place}")
        else:
            found.append(f"{kind} {given.get('uuid') or ' '.join(given.values())}".strip())
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
        compare(path, _kib(should, path), _kib(does, path))
    for path in _COMPARED:
        compare(path, should.findtext(path), does.findtext(path))
    for path, attribute in _COMPARED_ATTRIBUTES:
        ends = [end.get(attribute) if end is not None else None for end in (should.find(path), does.find(path))]
        compare(f"{path} {attribute}", *ends)
    return said


_UNITS = {"KiB": 1, "MiB": 1024, "GiB": 1024**2}


def _kib(domain: ET.Element, path: str) -> Optional[str]:
    size = domain.find(path)
    if size is None:
        return None
    return f"{int(size.text or 0) * _UNITS[size.get('unit', 'KiB')]} KiB"


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
