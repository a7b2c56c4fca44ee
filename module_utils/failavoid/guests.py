"""Guests on this host: started, awaited on their console, verified, removed.

Guests are transient in libvirt on purpose: a guest that was lost must not come back by itself, beside the copy
that a resource manager may have started elsewhere.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

from . import devices, domain_xml, guest_state, pinning, taps

try:
    import libvirt
except ImportError:  # said by the modules, with the way out
    libvirt = None

CONSOLE_LINES = 15
LOOK_S = 2.0  # how often a boot is asked whether its QEMU is still there
BOOT = Path("/var/lib/failavoid/boot")
RUN = Path("/run/libvirt/qemu")


class GuestError(Exception):
    """Something about a guest that went wrong: the message names it, and the way out."""


def connect() -> Any:
    """Connect to this host's libvirt; errors are raised, not also printed."""
    if libvirt is None:
        raise GuestError("Python's libvirt module is missing on this host: install python3-libvirt")
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    try:
        return libvirt.open("qemu:///system")
    except libvirt.libvirtError as error:
        raise GuestError(f"libvirt does not answer on this host ({error}): is libvirtd running?") from error


def find(connection: Any, name: str) -> Optional[Any]:
    """The guest's libvirt domain on this host, None if there is none."""
    try:
        return connection.lookupByName(name)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None
        raise


def is_running(connection: Any, name: str) -> bool:
    """Whether the guest runs here (a guest that is just being received does not)."""
    domain = find(connection, name)
    return domain is not None and domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING


def start(
    connection: Any,
    spec: domain_xml.GuestSpec,
    host: domain_xml.HostSettings,
    oom_score_adj: Optional[int],
    boot_timeout: float,
) -> Dict[str, Any]:
    """Start a guest, wait on its console until it is up, and verify where it runs.

    A guest that runs already as described is only verified; one that boots is waited for. Raises GuestError; a guest
    that did not come up is ended, its console's last lines are in the error.
    """
    with guest_state.locked(spec.name, "start") as path:
        xml = domain_xml.guest_xml(spec, host, str(path))
        present = find(connection, spec.name)
        began = time.time()
        if present is None:
            _create(connection, spec, xml, path, oom_score_adj)
        else:
            _check_same(present, spec, xml)
        timing = {}
        if present is None or (guest_state.read(path) or {}).get("state") == "booting":
            try:
                await_console(
                    spec.name, path / "console.log", boot_timeout, lambda: find(connection, spec.name) is not None
                )
            except GuestError:
                domain = find(connection, spec.name)
                if domain is not None:
                    domain.destroy()
                (path / "identity.json").unlink(missing_ok=True)
                taps.forbid(spec.address)
                guest_state.note(path, state="failed")
                raise
            guest_state.note(path, state="running", cores=spec.cores, numa_node=spec.numa_node)
            timing = {"boot_s": round(time.time() - began, 2)}
        verified = verify(spec.name, spec.cores, spec.numa_node, spec.vcpus, spec.hugepage_kb)
        return {**verified, "changed": present is None, **timing}


def _create(connection: Any, spec: domain_xml.GuestSpec, xml: str, path: Path, oom_score_adj: Optional[int]) -> None:
    """Start a guest's QEMU and fill its state directory. Raises GuestError, and leaves nothing then."""
    for file in (spec.kernel, spec.initrd):
        if not Path(file).exists():
            guest_state.remove(path)
            raise GuestError(f"guest {spec.name}: {file} is not on this host: run the role 'guest' for the image")
    (path / "console.log").unlink(missing_ok=True)
    guest_state.write_private(path / "identity.json", json.dumps(spec.identity), guest_state.QEMU_USER)
    guest_state.write_private(path / "domain.xml", xml)
    try:
        taps.allow(spec.address)
        connection.createXML(xml)
        set_oom_score(spec.name, oom_score_adj)
    except (libvirt.libvirtError, taps.TapError, OSError) as error:
        if find(connection, spec.name) is None:
            guest_state.remove(path)
            taps.forbid(spec.address)
        raise GuestError(f"guest {spec.name} could not be started: {error}") from error
    guest_state.note(
        path,
        guest=spec.name,
        uuid=spec.uuid,
        state="booting",
        address=spec.address,
        image=spec.image,
        user=spec.user,
        devices=spec.devices,
    )


def would_start(connection: Any, spec: domain_xml.GuestSpec, host: domain_xml.HostSettings) -> bool:
    """Whether `start` would start this guest: it is not here. Raises GuestError where `start` would refuse it."""
    present = find(connection, spec.name)
    if present is not None:
        _check_same(present, spec, domain_xml.guest_xml(spec, host, str(guest_state.directory(spec.name))))
    return present is None


def _check_same(present: Any, spec: domain_xml.GuestSpec, xml: str) -> None:
    """Refuse a guest that is here under that name but is not the one described. Raises GuestError."""
    if present.UUIDString() != spec.uuid:
        raise GuestError(
            f"another guest named {spec.name} runs on this host (UUID {present.UUIDString()}): remove it first"
        )
    if present.state()[0] != libvirt.VIR_DOMAIN_RUNNING:
        raise GuestError(f"guest {spec.name} is on this host but does not run: it may be arriving, or be suspended")
    other = domain_xml.differences(xml, present.XMLDesc())
    if other:
        raise GuestError(
            f"guest {spec.name} runs, but with {'; '.join(other)}. A running guest is not changed: remove it first"
        )


def await_console(name: str, console: Path, timeout: float, lives: Callable[[], bool] = lambda: True) -> None:
    """Watch the console until the guest says it is up. Raises GuestError with the console's last lines.

    ``lives`` tells whether its QEMU is still there: a guest that was killed says nothing any more.
    """
    import pexpect

    deadline = time.monotonic() + 10
    while not console.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    deadline = time.monotonic() + timeout
    watch = pexpect.spawn("/usr/bin/tail", ["-n", "+1", "-F", str(console)], timeout=LOOK_S, encoding="utf-8")
    watch.delaybeforesend = None
    bad = r"failavoid: error: [^\r\n]*|Kernel panic[^\r\n]*"
    reason = ""
    try:
        while not reason:
            end = watch.expect([f"failavoid: guest {name} is up", bad, pexpect.TIMEOUT, pexpect.EOF])
            if end == 0:
                return
            if end == 1:
                reason = str(watch.match.group(0))
            elif end == 3:
                reason = "its console can't be read"
            elif not lives():
                reason = "its QEMU has ended while it booted"
            elif time.monotonic() > deadline:
                reason = f"it did not come up within {timeout:.0f} s"
    finally:
        watch.close(force=True)
    raise GuestError(f"guest {name}: {reason}. The last lines of its console:\n{last_lines(console)}")


def last_lines(console: Path) -> str:
    """The console's last lines, or a word on why there are none."""
    try:
        lines = console.read_text(errors="replace").splitlines()
    except OSError as error:
        return f"(none: {error})"
    return "\n".join(lines[-CONSOLE_LINES:]) or "(it has said nothing)"


def process_of(name: str) -> int:
    """The process id of a guest's QEMU. Raises GuestError."""
    try:
        return int((RUN / f"{name}.pid").read_text())
    except (OSError, ValueError) as error:
        raise GuestError(f"guest {name}: its QEMU process is not known on this host ({error})") from error


def set_oom_score(name: str, score: Optional[int]) -> None:
    """Let the kernel's OOM killer prefer (or spare) a guest's QEMU, if the site says so."""
    if score is not None:
        Path(f"/proc/{process_of(name)}/oom_score_adj").write_text(str(score))


def verify(name: str, cores: List[int], numa_node: int, vcpus: int, hugepage_kb: int) -> Dict[str, Any]:
    """Compare where a guest runs with where it should; the words of any difference are returned."""
    found = pinning.observe(process_of(name))
    said = pinning.differences(found, cores, numa_node, vcpus, hugepage_kb)
    return {
        "guest": name,
        "state": "running",
        "cores": cores,
        "numa_node": numa_node,
        "pin_verified": not said,
        "pin_differences": said,
        "pages_by_node": found.pages,
        "page_kb": found.page_kb,
    }


def expect(
    connection: Any, name: str, address: str, bridge: str, evacuation: str, given: List[Dict[str, str]]
) -> Dict[str, Any]:
    """Prepare this host to receive a guest: directory, bridge, tap, the devices that are ``given`` to it.

    Asked again in the same evacuation, also after the guest has come, it leaves everything as it is. Raises GuestError.
    """
    with guest_state.locked(name, "prepare for its arrival") as path:
        if find(connection, name) is not None:
            state = guest_state.read(path) or {}
            if evacuation and state.get("evacuation") == evacuation:
                return {"guest": name, "state": "expected", "changed": False}
            raise GuestError(f"a guest named {name} is on this host already: nothing is prepared over it")
        if not Path(f"/sys/class/net/{bridge}/bridge").is_dir():
            guest_state.remove(path)
            raise GuestError(f"there is no bridge {bridge} on this host: run the role 'network'")
        try:
            devices.check_free(connection, given)
        except devices.DeviceError as error:
            guest_state.remove(path)
            raise GuestError(f"guest {name} can't be received: {error}") from error
        # QEMU opens the file when it starts; the guest read it when it booted: its secret need not travel
        guest_state.write_private(path / "identity.json", "{}", guest_state.QEMU_USER)
        (path / "console.log").touch(mode=0o600)
        taps.allow(address)
        guest_state.note(path, guest=name, state="expected", address=address, evacuation=evacuation, devices=given)
    return {"guest": name, "state": "expected", "changed": True}


def boot_files() -> List[str]:
    """What guests can boot on this host: kernels and initial RAM disks of the images it holds."""
    return sorted(str(path) for path in BOOT.glob("*/*") if path.is_file())


def arrived(
    connection: Any, name: str, cores: List[int], numa_node: int, oom_score_adj: Optional[int]
) -> Dict[str, Any]:
    """Check that a guest has arrived and runs as it should, plug its devices in, and note it. Raises GuestError."""
    with guest_state.locked(name, "verify its arrival") as path:
        domain = find(connection, name)
        if domain is None or domain.state()[0] != libvirt.VIR_DOMAIN_RUNNING:
            raise GuestError(f"guest {name} does not run on this host: look at the source before anything is started")
        noted = guest_state.read(path) or {}
        known = noted.get("state") == "running"
        if not known:
            set_oom_score(name, oom_score_adj)
        plugged, missing = False, ""
        try:
            plugged = devices.plug(domain, noted.get("devices") or [])
        except devices.DeviceError as error:  # it has moved all the same
            missing = str(error)
        xml = domain.XMLDesc()
        verified = verify(name, cores, numa_node, domain_xml.vcpus_of(xml), domain_xml.hugepage_kb_of(xml))
        if plugged or not known:
            guest_state.write_private(path / "domain.xml", xml)
            guest_state.note(
                path, guest=name, uuid=domain.UUIDString(), state="running", cores=cores, numa_node=numa_node
            )
    return {**verified, "state": "moved", "changed": plugged or not known, "devices_missing": missing}


def not_expected(connection: Any, name: str) -> bool:
    """Forget a guest that was expected and did not come; one that runs here is left alone."""
    path = guest_state.directory(name)
    state = guest_state.read(path)
    if state is None or state.get("state") != "expected" or find(connection, name) is not None:
        return False
    forget(path)
    return True


def forget(path: Path) -> None:
    """Remove what this host keeps of a guest that is not on it any more: state directory, secret, its tap's right."""
    address = (guest_state.read(path) or {}).get("address")
    if address:
        taps.forbid(address)
    guest_state.remove(path)


def end(connection: Any, name: str, uuid: str = "") -> bool:
    """Remove a guest and its state directory; True if there was anything to remove. Raises GuestError."""
    path = guest_state.directory(name)
    if find(connection, name) is None and not path.exists():
        return False
    with guest_state.locked(name, "remove"):
        domain = find(connection, name)
        if domain is not None:
            if uuid and domain.UUIDString() != uuid:
                raise GuestError(f"guest {name} on this host has UUID {domain.UUIDString()}, not {uuid}: not removed")
            if domain.state() == [libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_MIGRATION]:
                raise GuestError(f"guest {name} is on its way from or to this host: give up the move first (abort.yml)")
            domain.destroy()
        forget(path)
    return True


def listing(connection: Any) -> List[Dict[str, Any]]:
    """What this host knows of its guests: libvirt's word beside the state directories'."""
    domains = {domain.name(): domain for domain in connection.listAllDomains()}
    names = sorted(set(domains) | set(guest_state.known()))
    return [
        {
            "guest": name,
            "uuid": domains[name].UUIDString() if name in domains else None,
            "running": name in domains and domains[name].state()[0] == libvirt.VIR_DOMAIN_RUNNING,
            "noted": guest_state.read(guest_state.directory(name)),
        }
        for name in names
    ]
