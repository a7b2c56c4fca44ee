"""Guests on this host: started, awaited on their console, verified, removed.

Guests are transient in libvirt on purpose: a guest that was lost must not come back by itself, beside the copy
that a resource manager may have started elsewhere.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, Dict, List, Optional

from . import domain_xml, guest_state, pinning, taps

try:
    import libvirt
except ImportError:  # said by the modules, with the way out
    libvirt = None

CONSOLE_LINES = 15
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

    A guest of the same UUID that runs already is only verified. Raises GuestError; a guest that did not come
    up is removed, its console's last lines are in the error.
    """
    with guest_state.locked(spec.name, "start") as path:
        present = find(connection, spec.name)
        if present is not None:
            if present.UUIDString() != spec.uuid:
                raise GuestError(
                    f"another guest named {spec.name} runs on this host (UUID {present.UUIDString()}): remove it first"
                )
            return {**verify(spec.name, spec.cores, spec.numa_node, spec.vcpus), "changed": False}
        for file in (spec.kernel, spec.initrd):
            if not Path(file).exists():
                raise GuestError(f"guest {spec.name}: {file} is not on this host: run the role 'guest' for the image")
        console = path / "console.log"
        console.unlink(missing_ok=True)
        guest_state.write_private(path / "identity.json", json.dumps(spec.identity), guest_state.QEMU_USER)
        xml = domain_xml.guest_xml(spec, host, str(path))
        guest_state.write_private(path / "domain.xml", xml)
        taps.allow(spec.address)
        began = time.time()
        try:
            connection.createXML(xml)
        except libvirt.libvirtError as error:
            guest_state.remove(path)
            taps.forbid(spec.address)
            raise GuestError(f"guest {spec.name} could not be started: {error}") from error
        set_oom_score(spec.name, oom_score_adj)
        guest_state.note(
            path,
            guest=spec.name,
            uuid=spec.uuid,
            state="booting",
            address=spec.address,
            image=spec.image,
            user=spec.user,
        )
        try:
            await_console(spec.name, console, boot_timeout)
        except GuestError:
            domain = find(connection, spec.name)
            if domain is not None:
                domain.destroy()
            (path / "identity.json").unlink(missing_ok=True)
            guest_state.note(path, state="failed")
            raise
        verified = verify(spec.name, spec.cores, spec.numa_node, spec.vcpus)
        guest_state.note(path, state="running", cores=spec.cores, numa_node=spec.numa_node)
        return {**verified, "changed": True, "boot_s": round(time.time() - began, 2)}


def await_console(name: str, console: Path, timeout: float) -> None:
    """Watch the console until the guest says it is up. Raises GuestError with the console's last lines."""
    import pexpect

    deadline = time.monotonic() + 10
    while not console.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    watch = pexpect.spawn("/usr/bin/tail", ["-n", "+1", "-F", str(console)], timeout=timeout, encoding="utf-8")
    watch.delaybeforesend = None
    try:
        end = watch.expect(
            [
                f"failavoid: guest {name} is up",
                r"failavoid: error: [^\r\n]*",
                r"Kernel panic[^\r\n]*",
                pexpect.TIMEOUT,
                pexpect.EOF,
            ]
        )
        if end == 0:
            return
        reason = {
            1: str(watch.match.group(0)) if end == 1 else "",
            2: str(watch.match.group(0)) if end == 2 else "",
            3: f"it did not come up within {timeout:.0f} s",
            4: "its console can't be read",
        }[end]
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


def verify(name: str, cores: List[int], numa_node: int, vcpus: int) -> Dict[str, Any]:
    """Compare where a guest runs with where it should; the words of any difference are returned."""
    found = pinning.observe(process_of(name))
    said = pinning.differences(found, cores, numa_node, vcpus)
    return {
        "guest": name,
        "state": "running",
        "cores": cores,
        "numa_node": numa_node,
        "pin_verified": not said,
        "pin_differences": said,
        "pages_by_node": found.pages,
    }


def expect(connection: Any, name: str, address: str, boot_files: List[str], bridge: str) -> Dict[str, Any]:
    """Prepare this host to receive a guest: directory, boot files, bridge, tap. Raises GuestError."""
    with guest_state.locked(name, "prepare for its arrival") as path:
        if find(connection, name) is not None:
            state = guest_state.read(path) or {}
            if state.get("state") == "expected":  # the move is under way: asked again after a restart
                return {"guest": name, "state": "expected", "changed": False}
            raise GuestError(f"a guest named {name} is on this host already: nothing is prepared over it")
        for file in boot_files:
            if not Path(file).exists():
                raise GuestError(f"guest {name} boots {file}, which is not on this host: run the role 'guest'")
        if not Path(f"/sys/class/net/{bridge}/bridge").is_dir():
            raise GuestError(f"there is no bridge {bridge} on this host: run the role 'network'")
        # QEMU opens the file when it starts; the guest read it when it booted: its secret need not travel
        guest_state.write_private(path / "identity.json", "{}", guest_state.QEMU_USER)
        (path / "console.log").touch(mode=0o600)
        taps.allow(address)
        guest_state.note(path, guest=name, state="expected", address=address)
    return {"guest": name, "state": "expected", "changed": True}


def arrived(
    connection: Any, name: str, cores: List[int], numa_node: int, oom_score_adj: Optional[int]
) -> Dict[str, Any]:
    """Check that a guest has arrived here and runs as it should, and note it. Raises GuestError."""
    with guest_state.locked(name, "verify its arrival") as path:
        domain = find(connection, name)
        if domain is None or domain.state()[0] != libvirt.VIR_DOMAIN_RUNNING:
            raise GuestError(f"guest {name} does not run on this host: look at the source before anything is started")
        set_oom_score(name, oom_score_adj)
        xml = domain.XMLDesc()
        guest_state.write_private(path / "domain.xml", xml)
        verified = verify(name, cores, numa_node, domain_xml.vcpus_of(xml))
        guest_state.note(path, guest=name, uuid=domain.UUIDString(), state="running", cores=cores, numa_node=numa_node)
    return {**verified, "state": "moved", "changed": True}


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
