"""What a network card's firmware asks, by DHCP and TFTP, and what it is told."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time

COOKIE = b"\x63\x82\x53\x63"  # RFC 2131, as are the fields below
MESSAGE_TYPE, SERVER, VENDOR_CLASS, BOOT_FILE, ARCHITECTURE, IPXE = 53, 54, 60, 67, 93, 175
DISCOVER, OFFER = 1, 2
BIOS, UEFI_X86_64 = 0, 7  # RFC 4578
READ, DATA, ERROR = 1, 3, 5  # TFTP, RFC 1350


def offer(
    interface: str, mac: str, architecture: int = BIOS, ipxe: bool = False, patience_s: float = 5
) -> dict[str, str]:
    """Ask for an address by DHCP as a card's firmware does, and return what is offered: ``address``, ``boot_file``.

    Returns an empty dictionary if nobody answers in ``patience_s`` seconds.
    """
    ident = os.urandom(4)
    options = bytes([MESSAGE_TYPE, 1, DISCOVER, ARCHITECTURE, 2]) + struct.pack("!H", architecture)
    vendor = b"PXEClient:Arch:%05d:UNDI:002001" % architecture
    options += bytes([VENDOR_CLASS, len(vendor)]) + vendor
    options += bytes([IPXE, 3, 0xB1, 1, 1]) if ipxe else b""
    hardware = bytes.fromhex(mac.replace(":", ""))
    # its answer is to be broadcast, since it goes to an address that nobody has yet
    header = struct.pack("!4B4sHH16x16s192x", 1, 1, 6, 0, ident, 0, 0x8000, hardware)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        asking.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        asking.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
        asking.bind(("", 68))
        asking.sendto(header + COOKIE + options + b"\xff", ("255.255.255.255", 67))
        deadline = time.monotonic() + patience_s
        while (left := deadline - time.monotonic()) > 0:
            asking.settimeout(left)
            with contextlib.suppress(TimeoutError):
                said = asking.recv(2048)
                if said[4:8] == ident and _options(said)[MESSAGE_TYPE] == bytes([OFFER]):
                    file = said[108:236].rstrip(b"\0") or _options(said).get(BOOT_FILE, b"").rstrip(b"\0")
                    return {"address": socket.inet_ntoa(said[16:20]), "boot_file": file.decode()}
    return {}


def _options(message: bytes) -> dict[int, bytes]:
    found, rest = {}, message[240:]
    while rest and rest[0] != 255:
        if rest[0] == 0:
            rest = rest[1:]
            continue
        found[rest[0]] = rest[2 : 2 + rest[1]]
        rest = rest[2 + rest[1] :]
    return found


def fetch(server: str, name: str) -> bytes:
    """Return the first 512 bytes of a file by TFTP. Raises FileNotFoundError with the server's word."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.settimeout(10)
        asking.sendto(struct.pack("!H", READ) + name.encode() + b"\0octet\0", (server, 69))
        said, sender = asking.recvfrom(1024)
        kind, _number = struct.unpack("!HH", said[:4])
        if kind == ERROR:
            raise FileNotFoundError(said[4:].rstrip(b"\0").decode())
        asking.sendto(struct.pack("!HH", ERROR, 0) + b"enough\0", sender)
        return said[4:]
