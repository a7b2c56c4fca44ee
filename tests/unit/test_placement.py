"""Which hosts a job gets, and which cores its guests."""

import pytest

from failavoid.resource_manager import placement
from failavoid.resource_manager.settings import Settings
from failavoid.resource_manager.state import State
from failavoid.shared.messages import Device, Guest, Host, JobRequest, Lease, Placement

MIB = 1024
KEY = "ssh-ed25519 AAAA ada"


def host(number, pool="free", memory_mib=2048, numa=None):
    return Host(f"host{number}", f"10.0.0.{number}", pool, memory_mib * MIB, numa or {"0": [0, 1], "1": [2, 3]})


def state_of(*hosts):
    return State(hosts={one.name: one for one in hosts})


def guest(name, where, cores=(0,), job=None, memory_mib=256, state="ready", node=0):
    return Guest(name, f"uuid-{name}", where, "10.0.1.1", memory_mib * MIB, list(cores), node, "ada", state, job)


def settings(**changes):
    return Settings(hosts=[], head_address="", guest_network="", prefix=16, **changes)


def ask(hosts=1, guests=1, memory_mib=256):
    return JobRequest("ada", 1000, 1000, KEY, hosts, guests, memory_mib * MIB)


def chosen(state, request, spares=1, terms="terms", **changes):
    return [
        one.name
        for one in placement.choose_hosts(state, request, settings(spares=spares, **changes), "guests", {terms})
    ]


def test_a_job_gets_free_hosts_alone():
    state = state_of(host(1, "allocated"), host(2, "defunct"), host(3), host(4), host(5))
    assert chosen(state, ask(hosts=2)) == ["host3", "host4"]


def test_a_leased_host_is_not_free():
    state = state_of(host(1), host(2), host(3))
    state.leases["lease-1"] = Lease("lease-1", "host1", "e", 0.0)
    assert chosen(state, ask()) == ["host2"]
    with pytest.raises(placement.NoRoomError, match="2 hosts are asked for, 2 are free and 1 must stay spare"):
        chosen(state, ask(hosts=2))


def test_hosts_with_guests_that_can_be_used_again_come_first():
    state = state_of(host(1), host(2), host(3))
    state.guests["g1"] = guest("g1", "host3")
    state.terms["g1"] = "terms"
    assert chosen(state, ask()) == ["host3"]
    assert chosen(state, ask(), terms="others") == ["host1"]


def test_a_guest_is_used_again_only_with_the_pages_and_devices_that_are_asked_for():
    state, wanted = State(terms={"g1": "terms"}), ask()
    wanted.guest_devices = ["ib-vf"]
    idle = guest("g1", "host1")
    assert not placement.fits(state, idle, wanted, {"terms"})
    idle.devices = [Device("ib-vf", "0000:3b:00.1")]
    assert placement.fits(state, idle, wanted, {"terms"})
    wanted.guest_hugepage_kb = 2048
    assert not placement.fits(state, idle, wanted, {"terms"})


@pytest.mark.parametrize("unfit", [{"job": "job-1"}, {"state": "lost"}, {"state": "booting"}, {"memory_mib": 512}])
def test_a_guest_that_is_in_use_gone_or_of_another_size_is_not_used_again(unfit):
    state = State(terms={"g1": "terms"})
    assert placement.fits(state, guest("g1", "host1"), ask(), {"terms"})
    assert not placement.fits(state, guest("g1", "host1", **unfit), ask(), {"terms"})


def test_too_little_memory_is_said_with_figures():
    state = state_of(host(1), host(2), host(3, memory_mib=8192))
    with pytest.raises(placement.NoRoomError, match=r"2 hosts with 4096 MiB for guests.*3 are free and 1 of these"):
        chosen(state, ask(hosts=2, guests=8, memory_mib=512), share_cores=True)


def test_the_last_spare_is_kept():
    with pytest.raises(placement.NoRoomError, match=r"ask for 1 or fewer"):
        chosen(state_of(host(1), host(2)), ask(hosts=2))


def load(memory_mib=256, vcpus=1, hugepage_kb=0, devices=(), guests=1):
    return placement.Load(guests, memory_mib * MIB, vcpus, hugepage_kb, tuple(devices))


# -- cores -------------------------------------------------------------------------------------------------------


def fill(state, where, count, share=False):
    places = []
    for number in range(count):
        placed = placement.place(state, state.hosts[where], f"g{number}", share=share)
        state.guests[f"g{number}"] = guest(f"g{number}", where, placed.cores, node=placed.numa_node)
        places.append((placed.numa_node, placed.cores))
    return places


def test_guests_get_cores_of_their_own_on_the_emptier_numa_node_first():
    assert fill(state_of(host(1)), "host1", 4) == [(0, [0]), (1, [2]), (0, [1]), (1, [3])]


def test_with_more_guests_than_cores_they_share_evenly():
    places = fill(state_of(host(1)), "host1", 8, share=True)
    assert sorted(cores[0] for _, cores in places) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_the_cores_of_a_guest_are_of_one_node():
    state = state_of(host(1, numa={"0": [0], "1": [1, 2, 3]}))
    assert placement.place(state, state.hosts["host1"], "g1", load(vcpus=2)) == Placement("g1", "host1", [1, 2], 1)
    with pytest.raises(placement.NoRoomError, match="no NUMA node with 4 free cores for guest g1"):
        placement.place(state, state.hosts["host1"], "g1", load(vcpus=4))


def test_a_reserved_core_is_taken_and_a_lost_guests_core_is_free():
    state = state_of(host(1, numa={"0": [0, 1]}))
    state.reserved["g1"] = Placement("g1", "host1", [0], 0)
    assert placement.place(state, state.hosts["host1"], "g2").cores == [1]
    state.guests["g3"] = guest("g3", "host1", [1], state="lost")
    assert placement.place(state, state.hosts["host1"], "g2").cores == [1]


def test_pins_that_overlap_are_said():
    guests = [guest("g1", "host1"), guest("g2", "host1"), guest("g3", "host2"), guest("g4", "host2", state="lost")]
    assert placement.warnings(guests, {}) == {"host1": ["host1: more than one guest is pinned to core 0"]}


def test_hosts_that_share_a_machine_share_its_cores():
    machines = {"host1": "m", "host2": "m", "host3": "other", "host4": ""}
    apart = [guest("g1", "host1", [0]), guest("g2", "host2", [1]), guest("g3", "host3", [0]), guest("g4", "host4", [0])]
    assert placement.warnings(apart, machines) == {}
    said = placement.warnings([*apart, guest("g5", "host2", [0])], machines)
    assert sorted(said) == ["host1", "host2"]
    assert said["host1"] == ["host1, host2 run on one machine: guests of different hosts are pinned to the same cores"]


# -- hugepages ---------------------------------------------------------------------------------------------------


def huge_host(number, memory_mib=4096, **pages):
    """A host with hugepages of 2 MiB on its nodes: n0=512 is 1 GiB on node 0."""
    made = host(number, memory_mib=memory_mib)
    made.hugepages = {node[1:]: {"2048": count} for node, count in pages.items()}
    return made


def test_a_guest_on_hugepages_goes_to_a_node_that_has_enough_of_them_free():
    state = state_of(huge_host(1, n0=100, n1=256))
    size = load(memory_mib=512, hugepage_kb=2048)
    assert placement.place(state, state.hosts["host1"], "g1", size).numa_node == 1
    state.reserved["g1"] = Placement("g1", "host1", [2], 1)
    state.guests["g1"] = guest("g1", "host2", memory_mib=512)
    state.guests["g1"].hugepage_kb = 2048
    with pytest.raises(placement.NoRoomError, match="no NUMA node with 1 free cores and 256 free hugepages of 2048 kB"):
        placement.place(state, state.hosts["host1"], "g2", size)


def test_a_job_on_hugepages_gets_hosts_that_have_set_aside_enough_of_that_size():
    state = state_of(host(1), huge_host(2, n0=128, n1=128), huge_host(3, n0=300, n1=300), huge_host(4, n0=300, n1=300))
    request = ask(guests=2, memory_mib=512)
    request.guest_hugepage_kb = 2048
    assert chosen(state, request) == ["host3"]
    request.guest_hugepage_kb = 1048576
    with pytest.raises(placement.NoRoomError, match="1024 MiB on hugepages of 1048576 kB"):
        chosen(state, request)


def test_what_is_set_aside_as_hugepages_is_no_room_for_other_guests():
    small, big = huge_host(1, memory_mib=2048, n0=900), huge_host(2, memory_mib=4096, n0=900)
    assert placement.room_kb(small, settings()) == (2048 - 1800 - 256) * MIB
    assert chosen(state_of(small, big, host(3)), ask(memory_mib=512)) == ["host2"]
    words = placement.objection(state_of(small), small, [guest("g1", "host9")], settings())
    assert "of them its own or set aside as hugepages" in words
    huge = guest("g1", "host9", memory_mib=1024)
    huge.hugepage_kb = 2048
    assert placement.objection(state_of(big), big, [huge], settings()) == ""


# -- devices -----------------------------------------------------------------------------------------------------


def device_host(number, *addresses):
    made = host(number)
    made.devices = {"ib-vf": list(addresses)}
    return made


def test_each_guest_gets_a_device_that_no_other_has():
    state = state_of(device_host(1, "0000:3b:00.1", "0000:3b:00.2"))
    places = []
    for name in ("g1", "g2"):
        places.append(placement.place(state, state.hosts["host1"], name, load(devices=["ib-vf"])))
        state.reserved[name] = places[-1]
    assert [place.devices for place in places] == [[Device("ib-vf", f"0000:3b:00.{n}")] for n in (1, 2)]
    with pytest.raises(placement.NoRoomError, match=r"host1 has no free ib-vf for guest g3; it has 0000:3b:00\.1"):
        placement.place(state, state.hosts["host1"], "g3", load(devices=["ib-vf"]))


def test_a_job_with_devices_gets_hosts_that_have_them():
    state = state_of(host(1), device_host(2, "0000:3b:00.1"), device_host(3, "0000:3b:00.1", "0000:3b:00.2"), host(4))
    request = ask(guests=2)
    request.guest_devices = ["ib-vf"]
    state.hosts["host4"].devices = {"ib-vf": ["0000:3b:00.1", "0000:3b:00.2"]}
    assert chosen(state, request) == ["host3"]
    request.guest_devices = ["gpu"]
    with pytest.raises(placement.NoRoomError, match="2 times gpu for guests"):
        chosen(state, request)


# -- addresses ---------------------------------------------------------------------------------------------------


def test_a_guest_gets_an_address_nobody_has():
    assert placement.free_address("10.77.2.0/23", ["10.77.2.1", "10.77.2.3"]) == "10.77.2.2"
    with pytest.raises(placement.NoRoomError, match=r"all addresses of guest_network 10\.0\.0\.0/30 are taken"):
        placement.free_address("10.0.0.0/30", ["10.0.0.1", "10.0.0.2"])


def test_the_mask_of_a_prefix():
    assert placement.netmask(16) == "255.255.0.0"
