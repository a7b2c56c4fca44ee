"""Devices that are passed through to guests: unplugged before a move, plugged in again after it.

A device's state does not travel, so libvirt moves no guest that has one. What is taken from a guest is noted in its
state directory before it is taken, so that whoever takes up an act that was cut short can give it back.
"""

from __future__ import annotations

import threading
import time
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path
from typing import Any, Callable, Dict, List, Set

from . import domain_xml, guest_state, names

try:
    import libvirt
except ImportError:  # guests.connect says so
    libvirt = None

LOOK_S = 1.0  # how often libvirt is asked, beside what its events say
SYSFS = Path("/sys/bus/pci/devices")
_PENDING = "already in the process of unplug"  # QEMU's words, of a request the guest has not answered yet
_listening = threading.Lock()


class DeviceError(Exception):
    """A device that can't be unplugged or plugged in: the message names it and its guest, and the way out."""


def listen() -> None:
    """Have libvirt's events heard in this process, on all connections that are opened from now on; it must not fork."""
    if _listening.acquire(blocking=False):
        libvirt.virEventRegisterDefaultImpl()
        threading.Thread(target=_hear, daemon=True, name="libvirt-events").start()


def _hear() -> None:
    while True:
        libvirt.virEventRunDefaultImpl()


def unplug(domain: Any, path: Path, limit_s: float, given_up: Callable[[], bool]) -> None:
    """Take all passed-through devices from a running guest, whose state directory is ``path``. Raises DeviceError.

    The guest has to agree to it: its kernel is asked, and has ``limit_s`` seconds. `put_back` undoes it.
    """
    has = domain_xml.passed_through(domain.XMLDesc())
    taken = unplugged(path)
    if not {**taken, **has}:
        return
    guest_state.note(path, unplugged={**taken, **has})
    deadline = time.monotonic() + limit_s
    with _Removals(domain) as removals:
        for name, xml in has.items():
            _ask_for(domain, name, xml)
        while True:
            left = domain_xml.passed_through(domain.XMLDesc())
            if not left:
                return
            held = ", ".join(left)
            if removals.refused & set(map(_alias, left.values())):
                raise DeviceError(f"guest {domain.name()} does not give up {held}: see its kernel's messages")
            if given_up():
                raise DeviceError(f"given up while guest {domain.name()} had not given up {held}")
            if time.monotonic() > deadline:
                raise DeviceError(
                    f"guest {domain.name()} has not given up {held} within {limit_s:.0f} s: see whether its kernel "
                    "takes part in hot-plugging (pciehp, acpiphp). It may still give it up"
                )
            removals.wait(LOOK_S)


def _ask_for(domain: Any, name: str, xml: str) -> None:
    try:
        domain.detachDeviceFlags(xml, libvirt.VIR_DOMAIN_AFFECT_LIVE)
    except libvirt.libvirtError as error:
        gone = error.get_error_code() == libvirt.VIR_ERR_DEVICE_MISSING
        if not gone and _PENDING not in str(error):
            raise DeviceError(f"guest {domain.name()}: {name} can't be unplugged: {error}") from error


def unplugged(path: Path) -> Dict[str, str]:
    """What was taken from a guest for its move, and not given back: names with the devices' XML."""
    return dict((guest_state.read(path) or {}).get("unplugged") or {})


def put_back(domain: Any, path: Path) -> None:
    """Give a guest that stays what was taken from it; nothing if nothing was. Raises DeviceError."""
    taken = unplugged(path)
    if taken:
        _attach(domain, taken)
        guest_state.note(path, unplugged={})


def plug(domain: Any, devices: List[Dict[str, str]]) -> bool:
    """Give a guest that has arrived its devices of this host; True if it lacked any. Raises DeviceError."""
    return _attach(domain, {f"pci {one['address']}": domain_xml.hostdev_xml(one["address"]) for one in devices})


def _attach(domain: Any, devices: Dict[str, str]) -> bool:
    has = domain_xml.passed_through(domain.XMLDesc())
    missing = {name: xml for name, xml in devices.items() if name not in has}
    troubles = []
    for name, xml in missing.items():
        try:
            domain.attachDeviceFlags(xml, libvirt.VIR_DOMAIN_AFFECT_LIVE)
        except libvirt.libvirtError as error:
            troubles.append(f"{name} ({error})")
    if troubles:
        raise DeviceError(
            f"guest {domain.name()} runs, but could not be given {', '.join(troubles)}: its job does without, unless "
            "you give it with 'virsh attach-device'"
        )
    return bool(missing)


def wrong_declaration(declared: Dict[str, List[str]]) -> str:
    """Why devices that the inventory declares for this host, by kind, can't be passed through to guests, or nothing."""
    try:
        for kind in declared:
            names.check_name("device kind", kind)
    except names.InvalidNameError as error:
        return f"hypervisor_devices: {error}"
    addresses = Counter(address for given in declared.values() for address in given)
    missing = [address for address in addresses if not (SYSFS / address).exists()]
    if missing:
        return f"hypervisor_devices names PCI devices this host does not have: {', '.join(missing)} (see 'lspci -D')"
    twice = [address for address, times in addresses.items() if times > 1]
    return f"hypervisor_devices names {', '.join(twice)} twice" if twice else ""


def check_free(connection: Any, devices: List[Dict[str, str]]) -> None:
    """Check that this host has the devices and that no guest here has them. Raises DeviceError."""
    if not devices:
        return
    used = {
        name: domain.name()
        for domain in connection.listAllDomains()
        for name in domain_xml.passed_through(domain.XMLDesc())
    }
    for device in devices:
        address = device["address"]
        if not (SYSFS / address).exists():
            raise DeviceError(f"there is no PCI device {address} ({device['kind']}) here: correct hypervisor_devices")
        if f"pci {address}" in used:
            raise DeviceError(f"{device['kind']} {address} is guest {used[f'pci {address}']}'s already")


def check_given(guest: str, xml: str, path: Path, destination: str, given: List[Dict[str, str]]) -> None:
    """Check that for each device that a guest has its destination gives it one of the same kind. Raises DeviceError.

    ``xml`` is the guest's, ``path`` its state directory, ``given`` are devices of the destination.
    """
    has = {**unplugged(path), **domain_xml.passed_through(xml)}
    known = (guest_state.read(path) or {}).get("devices") or []
    kinds = {f"pci {device['address']}": device["kind"] for device in known}
    strange = [name for name in has if name not in kinds]
    lacking = Counter(kinds.get(name, "") for name in has) - Counter(device["kind"] for device in given)
    if has and not given:
        reason = f"and {destination} is to give it none ('devices' are not given)"
    elif strange:
        reason = f"but not {', '.join(strange)} by its launch: what would do the same elsewhere is not known"
    elif lacking:
        reason = f"but {destination} is to give it no {', '.join(sorted(lacking))}"
    else:
        return
    raise DeviceError(
        f"guest {guest} has {', '.join(has)} passed through to it, {reason}. Devices do not move: unplug them first"
    )


def _alias(xml: str) -> str:
    alias = ET.fromstring(xml).find("alias")
    return "" if alias is None else alias.get("name", "")


class _Removals:
    """Hears what libvirt says of the devices that a guest is to give up, while it is entered.

    Without `listen` nothing is heard; `wait` ends all the same.
    """

    def __init__(self, domain: Any) -> None:
        self.refused: Set[str] = set()  # aliases
        self._domain = domain
        self._heard = threading.Event()
        self._callbacks: List[int] = []

    def __enter__(self) -> _Removals:
        register = self._domain.connect().domainEventRegisterAny
        events = (libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED, libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVAL_FAILED)
        self._callbacks = [register(self._domain, event, self._hear, event) for event in events]
        return self

    def __exit__(self, *_error: object) -> None:
        for callback in self._callbacks:
            self._domain.connect().domainEventDeregisterAny(callback)

    def _hear(self, _connection: Any, _domain: Any, alias: str, event: int) -> None:
        if event == libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVAL_FAILED:
            self.refused.add(alias)
        self._heard.set()

    def wait(self, limit_s: float) -> None:
        """Wait for the next word, at most ``limit_s`` seconds."""
        self._heard.wait(limit_s)
        self._heard.clear()
