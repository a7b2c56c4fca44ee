"""What this node holds, as one JSON document: counts by kind, and each service's memory, open files and threads.

Runs on hosts and the head with their own Python: ``python3 -c "$(cat holdings.py)"``.
"""

import glob
import json
import os
import subprocess

UNITS = ("agent", "monitor", "resource-manager", "controller")


def count(*patterns: str) -> int:
    """How many files match."""
    return sum(len(glob.glob(pattern)) for pattern in patterns)  # noqa: PTH207


def output(*words: str) -> str:
    """What a program prints, nothing where it is not installed."""
    try:
        return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:
        return ""


def read(path: str) -> str:
    """A file's text, nothing where it has just gone."""
    try:
        with open(path) as file:  # noqa: PTH123
            return file.read()
    except OSError:
        return ""


def services() -> dict:
    """Of each service that runs here."""
    found = {}
    for unit in (*(f"failavoid-{name}" for name in UNITS), "libvirtd"):
        pid = output("systemctl", "show", "-p", "MainPID", "--value", unit)
        status = dict(line.split(":", 1) for line in read(f"/proc/{pid}/status").splitlines()) if pid.strip("0") else {}
        if "VmRSS" in status:
            found[unit] = {
                "memory_kb": int(status["VmRSS"].split()[0]),
                "threads": int(status["Threads"]),
                "files": count(f"/proc/{pid}/fd/*"),
            }
    return found


def allowed_taps() -> int:
    """Elements of the taps' filter."""
    table = json.loads(output("nft", "-j", "list", "table", "bridge", "failavoid") or '{"nftables": []}')
    return sum(len(one["set"].get("elem", [])) for one in table["nftables"] if "set" in one)


if __name__ == "__main__":
    counts = {
        "processes": count("/proc/[0-9]*"),
        "qemus": sum("qemu" in read(path) for path in glob.glob("/proc/[0-9]*/comm")),  # noqa: PTH207
        "taps": sum(name.startswith("fa-") for name in os.listdir("/sys/class/net")),  # noqa: PTH208
        "allowed_taps": allowed_taps(),
        "state_directories": count("/var/lib/failavoid/guests/*"),
        "records_of_moves": count("/run/failavoid/migrations/*.json"),
        "temporary_files": count("/tmp/*", "/root/.ansible/tmp/*"),
    }
    print(json.dumps({"counts": counts, "services": services()}))
