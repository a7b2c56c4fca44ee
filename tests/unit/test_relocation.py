"""Warm guests on hosts that a job was not given move to its hosts, by the controller, before the job is ready."""

import threading
import time

import httpx
import pytest
from evacuation_world import World, half_way, stays
from fastapi.testclient import TestClient
from resource_manager_site import PATIENCE_S, Site
from test_controller import bearer
from test_warm_pool import agent, fill

from failavoid.controller.api import build_app
from failavoid.controller.libvirt_view import RUNNING
from failavoid.controller.playbooks import MoveOrder, variables
from failavoid.resource_manager import relocation
from failavoid.resource_manager.settings import HostSettings, Settings, WarmPool
from failavoid.shared.messages import Guest, Placement, RelocationRequest, to_dict

# -- the resource manager ------------------------------------------------------------------------------------------


@pytest.fixture
def site(tmp_path, monkeypatch):
    """Warm guests g0001 on host1 and g0002 on host2."""
    site = Site(tmp_path, monkeypatch, warm_pools=[WarmPool(2)], relocate_warm="always")
    fill(site)
    yield site
    site.hold.set()


def submit(site, *takes_its_user):
    """A job of two guests on one host, which is host1; these guests' agents answer."""
    agents = [threading.Thread(target=agent, args=(site, name)) for name in takes_its_user]
    for one in agents:
        one.start()
    job = site.ready(hosts=1, guests_per_host=2)
    for one in agents:
        one.join()
    return job


def where(site):
    return {name: (guest.host, guest.state, guest.job) for name, guest in site.guests().items()}


def nothing_is_reserved(site):
    with site.store.view() as state:
        return state.reserved == {}


def test_a_warm_guest_on_another_host_moves_to_the_jobs_and_nothing_boots(site):
    job = submit(site, "g0001", "g0002")
    assert job.guests == ["g0001", "g0002"]
    assert where(site) == {"g0001": ("host1", "ready", job.id), "g0002": ("host1", "ready", job.id)}
    (asked,) = site.relocations
    assert (asked.job, [(one.guest, one.host) for one in asked.placements]) == (job.id, [("g0002", "host1")])
    assert len(site.played("launch.yml")) == 1  # the warm pool's own
    assert site.pools()["host2"] == "free"
    assert nothing_is_reserved(site)


def test_one_that_stays_is_warm_for_the_next_job_and_another_boots(site):
    site.stay = {"g0002"}
    job = submit(site, "g0001")
    assert job.guests == ["g0001", "g0003"]
    assert where(site)["g0003"] == ("host1", "ready", job.id)
    assert where(site)["g0002"] == ("host2", "warm", None)
    assert site.guests()["g0002"].user == ""
    assert nothing_is_reserved(site)


def test_one_of_which_nothing_is_known_is_given_up_and_reported_where_it_runs(site):
    site.unknown = {"g0002"}
    job = submit(site, "g0001")
    assert job.guests == ["g0001", "g0003"]
    assert where(site)["g0002"] == ("host2", "lost", None)
    for _ in range(3):
        site.watch.once()
    assert "g0002 runs on host1, but should be on host2" in site.picture().differences[0].words


def test_a_users_own_guest_moves_too_and_is_ready_as_it_comes(site):
    agents = [threading.Thread(target=agent, args=(site, name)) for name in ("g0001", "g0002")]
    for one in agents:
        one.start()
    site.end(site.ready(hosts=2, guests_per_host=1).id)
    for one in agents:
        one.join()
    job = submit(site)  # nobody has to tell them their user again
    assert where(site) == {"g0001": ("host1", "ready", job.id), "g0002": ("host1", "ready", job.id)}
    assert len(site.relocations) == 1


@pytest.mark.parametrize(
    ("wanted", "kvm", "moves"),
    [("kvm", False, False), ("kvm", True, True), ("never", True, False), ("always", False, True)],
)
def test_whether_guests_move_is_the_sites_choice_and_by_default_that_of_kvm(site, wanted, kvm, moves):
    site.settings.relocate_warm = wanted
    for host in site.settings.hosts:
        host.kvm = kvm
    submit(site, *(("g0001", "g0002") if moves else ("g0001",)))
    assert bool(site.relocations) == moves


def test_a_guest_on_a_host_that_is_marked_or_leased_is_left_there(site):
    site.post("/hosts/host2/suspect", {"reason": "hot"})
    submit(site, "g0001")
    assert site.relocations == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_restarted_resource_manager_asks_for_the_same_again(site, monkeypatch):
    asked = threading.Event()

    def never(request):
        site.relocations.append(request)
        asked.set()
        raise SystemExit  # this life ends while it waits

    with monkeypatch.context() as patch:
        patch.setattr(site, "relocate", never)
        site.start()
        ident = site.ask(hosts=1, guests_per_host=2).json()["id"]
        assert asked.wait(PATIENCE_S)
    agents = [threading.Thread(target=agent, args=(site, name)) for name in ("g0001", "g0002")]
    site.start()
    for one in agents:
        one.start()
    site.manager.recover()
    site.until(lambda: site.job(ident).state == "ready", "it is not launched again")
    for one in agents:
        one.join()
    first, second = site.relocations
    assert first == second
    assert where(site)["g0002"] == ("host1", "ready", ident)


def test_a_setting_that_is_none_of_the_words_is_refused():
    with pytest.raises(ValueError, match="'relocate_warm' is 'maybe'; use one of kvm, always, never"):
        Settings([HostSettings("h", "1", 1, {})], "1", "10.0.0.0/24", 24, relocate_warm="maybe")


# -- how it asks the controller ------------------------------------------------------------------------------------


def ask(monkeypatch, api):
    """Ask a controller that answers as ``api`` does."""
    real = httpx.Client
    monkeypatch.setattr(relocation, "RETRY_S", 0.01)
    monkeypatch.setattr(relocation, "CONNECT_S", 0.05)
    monkeypatch.setattr(relocation, "LIMIT_S", 1.0)
    monkeypatch.setattr(relocation.httpx, "Client", lambda **words: real(**words, transport=httpx.MockTransport(api)))
    move = relocation.by_controller("http://controller", b"s" * 48)
    return move(RelocationRequest("r-1", "job-1", [Placement("g1", "host1", [0], 0)]))


def test_a_controller_that_is_away_has_moved_nothing(monkeypatch):
    def away(request):
        raise httpx.ConnectError("refused", request=request)

    assert ask(monkeypatch, away) == {"g1": "failed"}


def test_a_controller_that_refuses_has_moved_nothing(monkeypatch):
    assert ask(monkeypatch, lambda _: httpx.Response(422, json={"detail": "there is no g1"})) == {"g1": "failed"}


def test_of_a_controller_that_was_asked_and_falls_silent_nothing_is_known(monkeypatch):
    def silent(request):
        raise httpx.ReadTimeout("late", request=request)

    assert ask(monkeypatch, silent) == {}


# -- the controller ------------------------------------------------------------------------------------------------


@pytest.fixture
def world(tmp_path):
    """A guest of job-2, which is being launched, is on host4 and has a place on host5."""
    world = World(tmp_path)
    guest = Guest("guest7", "uuid-7", "host4", "10.0.1.7", 2**18, [1], 0, "u", "relocating", "job-2")
    world.manager.membership.guests.append(guest)
    world.where["guest7"] = {"host4": RUNNING}
    world.manager.change()
    yield world
    world.alive.clear()


REQUEST = RelocationRequest("r-1", "job-2", [Placement("guest7", "host5", [2], 0)])


def begin(world, request=REQUEST):
    api = TestClient(build_app(world.controller, b"s" * 48))
    return api.post("/relocations", json=to_dict(request), headers=bearer("service", "resource-manager"))


def ended(world):
    world.until(lambda: world.around.journal.open_relocations() == [])
    return world.around.journal.relocation("r-1")


def test_a_guest_moves_without_a_notice_and_without_a_gate(world):
    assert begin(world).json()["migrations"][0]["source"] == "host4"
    relocation = ended(world)
    assert [(m.destination, m.state) for m in relocation.migrations] == [("host5", "moved")]
    assert (relocation.error, world.where["guest7"]) == ("", {"host5": RUNNING})
    assert world.around.board.notice("job-2").epoch == 0
    order = MoveOrder("r-1", 1, relocation.migrations, {h.name: h for h in world.manager.membership.hosts}, gated=False)
    assert variables(order, "http://head")["migrate_gate_url"] == ""


@pytest.mark.parametrize(("end", "state"), [(stays, "failed"), (half_way, "running")])
def test_it_is_said_of_each_guest_where_it_is(world, end, state):
    world.fail["guest7"] = end
    begin(world)
    relocation = ended(world)
    assert relocation.migrations[0].state == state
    assert "guest7" in relocation.error


def test_the_same_asked_for_again_is_the_same(world):
    assert begin(world).json()["begun"] == begin(world).json()["begun"]
    ended(world)
    assert world.playbook_runs == 1


def test_what_is_not_there_is_refused(world):
    answer = begin(world, RelocationRequest("r-2", "job-2", [Placement("guest9", "host5", [2], 0)]))
    assert (answer.status_code, answer.json()["detail"]) == (422, "relocation r-2: there is no guest9")
    assert world.controller.relocations.find("r-2") is None


def test_a_restarted_controller_ends_it(world):
    world.stuck = True
    begin(world)
    world.until(lambda: world.playbook_runs == 1)
    world.crash()
    world.stuck = False
    world.begin()
    world.controller.resume()
    assert ended(world).migrations[0].state == "moved"


def test_a_controller_that_is_started_before_the_resource_manager_waits_with_it(world):
    world.stuck = True
    begin(world)
    world.until(lambda: world.playbook_runs == 1)
    world.crash()
    world.manager.down, world.stuck = True, False
    world.begin()
    world.controller.resume()
    time.sleep(0.1)
    assert world.controller.relocations.find("r-1").ended is None
    world.manager.down = False
    assert ended(world).migrations[0].state == "moved"


def test_an_evacuation_of_either_end_waits_for_it_and_leaves_the_guest_alone(world):
    world.stuck = True
    begin(world)
    world.until(lambda: world.playbook_runs == 1)
    assert world.controller.fleet.waits_for_arrivals(world.alarm("host1")) is False
    assert world.controller.relocations.concern("host4")
    assert world.controller.relocations.concern("host5")
    world.stuck = False
    ended(world)
    assert not world.controller.relocations.concern("host4")
