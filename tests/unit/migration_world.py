"""Hosts, guests and moves as libvirt would show them: what a move comes to is set by the test."""

from __future__ import annotations

import threading

import libvirt

from failavoid.shared.domain_xml import hostdev_xml, passed_through

XML = """<domain type='{kind}'><name>{name}</name><memory unit='KiB'>262144</memory>{backing}<vcpu>2</vcpu>
<cputune><vcpupin vcpu='0' cpuset='0'/></cputune><numatune><memory mode='strict' nodeset='0'/></numatune>
<os><type>hvm</type><kernel>/boot/vmlinuz</kernel><initrd>/boot/initrd.img</initrd></os><devices>{devices}</devices></domain>"""
HUGEPAGES = "<memoryBacking><hugepages><page size='2048' unit='KiB'/></hugepages></memoryBacking>"

RUNNING, PAUSED = libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_PAUSED


def error(text: str, code: int = libvirt.VIR_ERR_OPERATION_FAILED) -> libvirt.libvirtError:
    made = libvirt.libvirtError(text)
    made.err = (code, libvirt.VIR_FROM_QEMU, text, libvirt.VIR_ERR_ERROR, "", "", "", 0, 0)
    return made


class World:
    """Which guests are on which host, and in what state: hosts[HOST][GUEST] is a domain's state.

    ``devices`` are those passed through to each guest, by PCI address; ``gives_up`` is what becomes of a request to
    give one up.
    """

    def __init__(self, *guests: str) -> None:
        self.hosts: dict[str, dict[str, int]] = {"host01": dict.fromkeys(guests, RUNNING), "10.77.1.5": {}}
        self.silent: set[str] = set()
        self.domain_type = "kvm"
        self.pinned: list[tuple] = []
        self.aborts = 0
        self.given: list[dict] = []
        self.aborted = threading.Event()
        self.job = {"data_processed": 1, "data_remaining": 100}
        self.job_type = libvirt.VIR_DOMAIN_JOB_NONE
        self.move = self.arrives  # what a migration does
        self.devices: dict[str, list[str]] = {}
        self.gives_up = self.at_once
        self.callbacks: dict[int, tuple] = {}
        self.attach_error: Exception | None = None
        self.attached: list[tuple[str, str]] = []
        self.hugepages = 0  # of 2 MiB, free on each node
        self.backing = ""

    def arrives(self, guest: str) -> None:
        del self.hosts["host01"][guest]
        self.hosts["10.77.1.5"][guest] = RUNNING

    def at_once(self, guest: str, address: str) -> None:
        self.devices[guest].remove(address)
        self.tell(libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED, address)

    def refuses(self, _guest: str, address: str) -> None:
        self.tell(libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVAL_FAILED, address)

    def tell(self, event: int, address: str) -> None:
        for known, callback, opaque in list(self.callbacks.values()):
            if known == event:
                callback(None, None, f"alias-{address}", opaque)

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

    def getFreePages(self, sizes, node, _count):
        return {node: dict.fromkeys(sizes, self.world.hugepages)}

    def listAllDomains(self):
        return [Domain(self.world, self.host, name) for name in self.world.hosts[self.host]]

    def domainEventRegisterAny(self, _domain, event, callback, opaque):
        number = len(self.world.callbacks) + 1
        self.world.callbacks[number] = (event, callback, opaque)
        return number

    def domainEventDeregisterAny(self, number):
        del self.world.callbacks[number]

    def close(self):
        pass


class Domain:
    def __init__(self, world: World, host: str, name: str) -> None:
        self.world, self.host, self._name = world, host, name

    def state(self):
        return [self.world.hosts[self.host][self._name], 0]

    def XMLDesc(self, _flags=0):
        has = [
            hostdev_xml(address).replace("</hostdev>", f"<alias name='alias-{address}'/></hostdev>")
            for address in self.world.devices.get(self._name, [])
        ]
        backing = self.world.backing
        return XML.format(kind=self.world.domain_type, name=self._name, devices="".join(has), backing=backing)

    def name(self):
        return self._name

    def UUIDString(self):
        return f"uuid-{self._name}"

    def connect(self):
        return Connection(self.world, self.host)

    def detachDeviceFlags(self, xml, _flags):
        (name,) = passed_through(f"<domain><devices>{xml}</devices></domain>")
        self.world.gives_up(self._name, name.removeprefix("pci "))

    def attachDeviceFlags(self, xml, _flags):
        if self.world.attach_error:
            raise self.world.attach_error
        (name,) = passed_through(f"<domain><devices>{xml}</devices></domain>")
        self.world.devices.setdefault(self._name, []).append(name.removeprefix("pci "))
        self.world.attached.append((self.host, name))

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
