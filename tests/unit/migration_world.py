"""Hosts, guests and moves as libvirt would show them: what a move comes to is set by the test."""

from __future__ import annotations

import threading

import libvirt

XML = """<domain type='{kind}'><name>{name}</name><memory unit='KiB'>262144</memory><vcpu>2</vcpu>
<cputune><vcpupin vcpu='0' cpuset='0'/></cputune><numatune><memory mode='strict' nodeset='0'/></numatune>
<os><type>hvm</type><kernel>/boot/vmlinuz</kernel><initrd>/boot/initrd.img</initrd></os></domain>"""

RUNNING, PAUSED = libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_PAUSED


def error(text: str, code: int = libvirt.VIR_ERR_OPERATION_FAILED) -> libvirt.libvirtError:
    made = libvirt.libvirtError(text)
    made.err = (code, libvirt.VIR_FROM_QEMU, text, libvirt.VIR_ERR_ERROR, "", "", "", 0, 0)
    return made


class World:
    """Which guests are on which host, and in what state: hosts[HOST][GUEST] is a domain's state."""

    def __init__(self, *guests: str) -> None:
        self.hosts: dict[str, dict[str, int]] = {"host01": dict.fromkeys(guests, RUNNING), "10.77.1.5": {}}
        self.silent: set[str] = set()
        self.domain_type = "kvm"
        self.pinned: list[tuple] = []
        self.aborts = 0
        self.given: list[dict] = []
        self.aborted = threading.Event()
        self.job = {"data_processed": 0, "data_remaining": 100}
        self.job_type = libvirt.VIR_DOMAIN_JOB_NONE
        self.move = self.arrives  # what a migration does

    def arrives(self, guest: str) -> None:
        del self.hosts["host01"][guest]
        self.hosts["10.77.1.5"][guest] = RUNNING

    def waits_for_abort(self, guest: str) -> None:
        assert self.aborted.wait(20)
        raise error("operation aborted: migration out job: canceled by client", libvirt.VIR_ERR_OPERATION_ABORTED)


class Connection:
    def __init__(self, world: World, host: str) -> None:
        self.world, self.host = world, host

    def lookupByName(self, name):
        if name not in self.world.hosts[self.host]:
            raise error(f"no domain {name}", libvirt.VIR_ERR_NO_DOMAIN)
        return Domain(self.world, self.host, name)

    def close(self):
        pass


class Domain:
    def __init__(self, world: World, host: str, name: str) -> None:
        self.world, self.host, self._name = world, host, name

    def state(self):
        return [self.world.hosts[self.host][self._name], 0]

    def XMLDesc(self, _flags=0):
        return XML.format(kind=self.world.domain_type, name=self._name)

    def maxMemory(self):
        return 262144

    def maxVcpus(self):
        return 2

    def pinVcpu(self, vcpu, cores):
        self.world.pinned.append((vcpu, [core for core, there in enumerate(cores) if there]))

    def pinEmulator(self, cores):
        self.world.pinned.append(("emulator", [core for core, there in enumerate(cores) if there]))

    def jobInfo(self):
        return [self.world.job_type]

    def jobStats(self, flags=0):
        if flags & libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED:
            return {"downtime": 20, "data_processed": 5000, "time_elapsed": 800, "memory_iteration": 3}
        return dict(self.world.job)

    def abortJob(self):
        self.world.aborts += 1
        self.world.aborted.set()

    def migrateToURI3(self, uri, parameters, flags):
        self.world.given.append({"uri": uri, "parameters": parameters, "flags": flags})
        self.world.move(self._name)
