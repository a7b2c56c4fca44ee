#!/usr/bin/python
# Copyright: the failavoid authors
# Apache License 2.0 (see LICENSE)
"""Ansible module: the site's certificates for libvirt, migrations and the services."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: failavoid_certificates
short_description: Issue and install the certificates of hosts
description:
  - V(issued) keeps a certificate authority in a folder of the head and has a key and certificate for each host in it.
  - Certificates count for ten years. They are made anew in the last 90 days of that, when names or addresses change, or
    when the authority is another; so is the authority's own, with the same key, unless the site has brought it.
  - V(installed) puts a host's key and certificate where libvirt, QEMU and the services look for them.
  - The authority's certificate, which is public, comes into C(/etc/failavoid/authority.pem) too.
version_added: "0.1.0"
options:
  state:
    description: What is to be done.
    type: str
    choices: [issued, installed]
    required: true
  authority:
    description: Folder of the authority, for V(issued). A site's own C(ca-cert.pem) and C(ca-key.pem) there are used.
    type: path
    default: /etc/failavoid/ca
  hosts:
    description: >-
      The hosts, each with C(name) and C(address), and C(alternatives) if it is reached by more names or addresses,
      for V(issued).
    type: list
    elements: dict
    default: []
  certificate:
    description: What V(issued) returned for this host, as JSON, for V(installed).
    type: str
    default: "{}"
  qemu:
    description: Whether to install for QEMU too, for V(installed).
    type: bool
    default: true
  group:
    description: Group that may read the client's key, if it exists, for V(installed).
    type: str
    default: ""
  service_user:
    description: User whose alone the services' key in C(/etc/failavoid/tls) is, for V(installed). Empty installs none.
    type: str
    default: ""
attributes:
  check_mode:
    support: full
    description: Says whether something would be issued or installed. What would be issued is not returned.
  diff_mode:
    support: none
    description: Keys are not shown.
  idempotent:
    support: full
    description: Certificates are kept until they are near their end.
author:
  - The failavoid authors (@failavoid)
"""

EXAMPLES = r"""
- name: Have certificates for the hosts
  failavoid_certificates:
    state: issued
    hosts:
      - name: host01
        address: 10.77.1.1
"""

RETURN = r"""
certificates:
  description: JSON with key, certificate and authority, by host.
  returned: for O(state=issued)
  type: dict
"""

import contextlib
import grp
import ipaddress
import json
import os
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, List, Tuple

from ansible.module_utils.basic import AnsibleModule

DAYS = 3650
RENEW_BEFORE_S = 90 * 86400
CLOCKS_APART_S = 86400
OWN_NAME = "failavoid"  # of an authority that this module has made
QEMU_GROUP = "libvirt-qemu"
FAILAVOID = Path("/etc/failavoid")


class CertificateError(Exception):
    """Something about a certificate that went wrong."""


def certtool(*arguments: str) -> str:
    """Run GnuTLS's certtool and return what it prints. Raises CertificateError."""
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(
            ["certtool", *arguments], check=True, capture_output=True, text=True, errors="replace", env=environment
        )
    except FileNotFoundError as error:
        raise CertificateError("certtool is missing: install gnutls-bin") from error
    except subprocess.CalledProcessError as error:
        raise CertificateError(f"certtool {' '.join(arguments)}: {error.stderr.strip()[-400:]}") from error
    return done.stdout


def private_key(path: Path) -> None:
    """Make a key that nobody but root can read, not even while it is being made."""
    new = path.with_suffix(".new")
    with os.fdopen(os.open(new, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w"):
        pass
    # not ECDSA: libvirt 9 wants a certificate that may encipher keys
    certtool("--generate-privkey", "--key-type=rsa", "--bits=3072", f"--outfile={new}")
    new.chmod(0o600)
    new.replace(path)


def authority(folder: Path) -> bool:
    """Have a certificate authority in ``folder``; True if it was made or renewed now.

    One of this module's own is renewed with its key before it ends: what it has signed stays good.
    """
    if stays(folder):
        return False
    certificate, key = folder / "ca-cert.pem", folder / "ca-key.pem"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    if not certificate.exists():
        private_key(key)
    with _template(folder, [f'cn = "{OWN_NAME}"', "ca", "cert_signing_key"]) as file:
        certtool("--generate-self-signed", f"--load-privkey={key}", f"--template={file}", f"--outfile={certificate}")
    return True


def stays(folder: Path) -> bool:
    """Whether there is an authority that this module does not renew now: it does not end soon, or is the site's own."""
    certificate = folder / "ca-cert.pem"
    return certificate.exists() and (not _ends_soon(certificate) or not _is_own(certificate))


def trouble_with(authority: Path) -> str:
    """What a person has to do about an authority that was brought by the site, or nothing."""
    if not _ends_soon(authority):
        return ""
    end = time.strftime("%Y-%m-%d", time.gmtime(_end_of(authority)))
    return (
        f"the site's certificate authority {authority} ends on {end}: put a newer ca-cert.pem and ca-key.pem there "
        "and run this again, or services, agents and libvirt will refuse each other from then on"
    )


def issue(folder: Path, name: str, addresses: List[str]) -> bool:
    """Have a key and a certificate for a host with these names and addresses; True if they were made now.

    They are made anew when the names change, before they end, and when the authority is another.
    """
    if holds(folder, name, addresses):
        return False
    key, certificate, told = (folder / f"{name}-{what}" for what in ("key.pem", "cert.pem", "address"))
    told.unlink(missing_ok=True)  # or a key without its certificate would pass for a pair, were this cut short
    private_key(key)
    names = [f'cn = "{name}"', f'dns_name = "{name}"', *(f'{_kind(address)} = "{address}"' for address in addresses)]
    with _template(folder, [*names, "tls_www_server", "tls_www_client", "signing_key", "encryption_key"]) as file:
        certtool(
            "--generate-certificate",
            f"--load-privkey={key}",
            f"--load-ca-certificate={folder / 'ca-cert.pem'}",
            f"--load-ca-privkey={folder / 'ca-key.pem'}",
            f"--template={file}",
            f"--outfile={certificate}",
        )
    told.write_text("\n".join(addresses))
    return True


def holds(folder: Path, name: str, addresses: List[str]) -> bool:
    """Whether a host's certificate is there, has these addresses, is the authority's and does not end soon."""
    certificate, told = folder / f"{name}-cert.pem", folder / f"{name}-address"
    if not certificate.exists() or not told.exists() or told.read_text() != "\n".join(addresses):
        return False
    try:
        certtool("--verify", f"--load-ca-certificate={folder / 'ca-cert.pem'}", f"--infile={certificate}")
    except CertificateError:
        return False
    return not _ends_soon(certificate)


def _kind(address: str) -> str:
    """What certtool calls it."""
    try:
        ipaddress.ip_address(address)
    except ValueError:
        return "dns_name"
    return "ip_address"


def _ends_soon(certificate: Path) -> bool:
    return _end_of(certificate) - RENEW_BEFORE_S < time.time()


def _end_of(certificate: Path) -> int:
    """When a certificate ends, in seconds since the epoch."""
    _, month, day, clock, _, year = _said_of(certificate, "Not After").split()  # Fri Nov 21 11:28:02 UTC 2036
    return ssl.cert_time_to_seconds(f"{month} {day} {clock} {year} GMT")


def _is_own(authority: Path) -> bool:
    return _said_of(authority, "Subject") == f"CN={OWN_NAME}"


def _said_of(certificate: Path, what: str) -> str:
    """A line of certtool's description. Raises CertificateError."""
    for line in certtool("--certificate-info", f"--infile={certificate}").splitlines():
        label, _, value = line.strip().partition(": ")
        if label == what:
            return value
    raise CertificateError(f"{certificate}: certtool does not tell its '{what}': is it a certificate?")


@contextlib.contextmanager
def _template(folder: Path, lines: List[str]) -> Any:
    """certtool's description of a certificate; it counts from yesterday on, for hosts whose clocks are behind."""
    begin = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(time.time() - CLOCKS_APART_S))
    text = "\n".join([*lines, f'activation_date = "{begin}"', f"expiration_days = {DAYS}"]) + "\n"
    with tempfile.NamedTemporaryFile("w", dir=folder, suffix=".template") as file:
        file.write(text)
        file.flush()
        yield file.name


def existing(group: str) -> str:
    """The group if this host has it, else none."""
    with contextlib.suppress(KeyError):
        return grp.getgrnam(group).gr_name
    return ""


def places(files: Dict[str, str], qemu: bool, group: str, service_user: str) -> List[Tuple[Path, str, str, str, int]]:
    """Where libvirt, QEMU and the services look: path, text, owner, group, mode. Raises CertificateError."""
    try:
        ca, cert, key = files["authority"], files["certificate"], files["key"]
    except KeyError as error:
        raise CertificateError(
            f"the certificate to install lacks {error}: give what 'issued' has returned for this host"
        ) from error
    pki = Path("/etc/pki")
    wanted = [
        (FAILAVOID / "authority.pem", ca, "root", "root", 0o644),
        (pki / "CA/cacert.pem", ca, "root", "root", 0o644),
        (pki / "libvirt/servercert.pem", cert, "root", "root", 0o644),
        (pki / "libvirt/clientcert.pem", cert, "root", "root", 0o644),
        (pki / "libvirt/private/serverkey.pem", key, "root", "root", 0o600),
        (pki / "libvirt/private/clientkey.pem", key, "root", group or "root", 0o640 if group else 0o600),
    ]
    if service_user:
        wanted.append((FAILAVOID / "tls/certificate.pem", cert, "root", "root", 0o644))
        wanted.append((FAILAVOID / "tls/key.pem", key, service_user, "root", 0o400))
    if qemu:
        wanted.append((pki / "qemu/ca-cert.pem", ca, "root", "root", 0o644))
        for side in ("server", "client"):
            wanted.append((pki / f"qemu/{side}-cert.pem", cert, "root", "root", 0o644))
            wanted.append((pki / f"qemu/{side}-key.pem", key, "root", QEMU_GROUP, 0o640))
    return wanted


def install(path: Path, text: str, owner: str, group: str, mode: int, check: bool) -> bool:
    """Have a file with that text; True if it differs."""
    with contextlib.suppress(OSError, KeyError):
        whose = (path.owner(), path.group())
        if path.read_text() == text and path.stat().st_mode & 0o777 == mode and whose == (owner, group):
            return False
    if not check:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        new = path.with_suffix(".new")
        with os.fdopen(os.open(new, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w") as file:
            file.write(text)
        shutil.chown(new, owner, group)
        new.chmod(mode)
        new.replace(path)
    return True


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "required": True, "choices": ["issued", "installed"]},
            "authority": {"type": "path", "default": "/etc/failavoid/ca"},
            "hosts": {"type": "list", "elements": "dict", "default": []},
            "certificate": {"type": "str", "default": "{}", "no_log": True},
            "qemu": {"type": "bool", "default": True},
            "group": {"type": "str", "default": ""},
            "service_user": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    params = module.params
    try:
        if params["state"] == "installed":
            files = json.loads(params["certificate"])
            wanted = places(files, params["qemu"], existing(params["group"]), params["service_user"])
            module.exit_json(changed=any([install(*place, check=module.check_mode) for place in wanted]))
        folder = Path(params["authority"])
        hosts = {
            host["name"]: list(dict.fromkeys([host["address"], *host.get("alternatives", [])]))
            for host in params["hosts"]
        }
        if module.check_mode and not (stays(folder) and all(holds(folder, *host) for host in hosts.items())):
            module.exit_json(changed=True, certificates={})
        changed = authority(folder)
        if trouble := trouble_with(folder / "ca-cert.pem"):
            module.warn(trouble)
        for name, addresses in hosts.items():
            changed = issue(folder, name, addresses) or changed
        certificates = {
            name: json.dumps(
                {
                    "authority": (folder / "ca-cert.pem").read_text(),
                    "certificate": (folder / f"{name}-cert.pem").read_text(),
                    "key": (folder / f"{name}-key.pem").read_text(),
                }
            )
            for name in hosts
        }
    except CertificateError as error:
        module.fail_json(msg=f"{socket.gethostname()}: {error}")
    module.exit_json(changed=changed, certificates=certificates)


if __name__ == "__main__":
    main()
