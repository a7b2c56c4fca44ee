"""Guests' taps on a host: what each may say it is.

One nftables table of the bridge family lets a tap speak with the hardware and IP address of its guest alone. Libvirt's
own filter (clean-traffic) does the same with some thirty runs of ebtables a guest, which costs seconds in the middle of
a move; here it is two set elements, added before the guest comes.
"""

from __future__ import annotations

import ipaddress
import subprocess
from typing import List

PREFIX = "fa-"
_TABLE = f"""
add table bridge failavoid
add set bridge failavoid guests {{ type ifname . ether_addr . ipv4_addr; }}
add set bridge failavoid hardware {{ type ifname . ether_addr; }}
add chain bridge failavoid from_guests {{ type filter hook prerouting priority -300; policy accept; }}
flush chain bridge failavoid from_guests
add rule bridge failavoid from_guests iifname != "{PREFIX}*" accept
add rule bridge failavoid from_guests ether type ip iifname . ether saddr . ip saddr @guests accept
add rule bridge failavoid from_guests ether type arp iifname . ether saddr . arp saddr ip @guests accept
add rule bridge failavoid from_guests ether type 0x8035 iifname . ether saddr @hardware accept
add rule bridge failavoid from_guests drop
"""


class TapError(Exception):
    """The kernel's filter did not take a rule; the message carries nft's words."""


def hardware_address(address: str) -> str:
    """A guest's MAC address, from its IP address: unique where that is."""
    return "52:54:" + ":".join(f"{byte:02x}" for byte in ipaddress.IPv4Address(address).packed)


def tap_name(address: str) -> str:
    """The name of a guest's tap, the same on every host: interface names end at 15 characters, guests' do not."""
    return PREFIX + ipaddress.IPv4Address(address).packed.hex()


def allow(address: str) -> None:
    """Let the guest with that IP address speak on this host. Raises TapError."""
    _nft(_TABLE + "".join(f"add element bridge failavoid {one}\n" for one in _elements(address)))


def forbid(address: str) -> None:
    """Take that back; nothing happens where it was not allowed."""
    for element in _elements(address):
        subprocess.run(
            ["nft", "delete", "element", "bridge", "failavoid", *element.split(" ", 1)],
            capture_output=True,
            check=False,
        )


def _elements(address: str) -> List[str]:
    tap, hardware = tap_name(address), hardware_address(address)
    return [f'guests {{ "{tap}" . {hardware} . {address} }}', f'hardware {{ "{tap}" . {hardware} }}']


def _nft(commands: str) -> None:
    try:
        done = subprocess.run(["nft", "-f", "-"], input=commands, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise TapError("nft is missing on this host: install nftables") from error
    if done.returncode:
        raise TapError(f"the filter for guests' taps could not be set: {done.stderr.strip()}")
