"""What the monitor sends to browsers: the board, the stream of events, histories, recordings, orders."""

import json
import re
import time
from hashlib import sha256

import httpx
import numpy as np
import pytest
from display_site import CORES, bearer, site

from failavoid.monitor.display import api
from failavoid.monitor.display.board import Board
from failavoid.monitor.display.values import UNKNOWN, Recent, band, encode
from failavoid.shared.messages import HostHistory, Recording, from_dict

PAGES = api.Path(api.__file__).parent / "pages"

# -- the board ---------------------------------------------------------------------------------------------------


class Copy:
    """What a browser does with the news."""

    def __init__(self):
        self.place, self.documents, self.resets = "", {}, 0

    def take(self, news):
        if news["reset"]:
            self.documents, self.resets = {}, self.resets + 1
        for kind, names in news["gone"].items():
            for name in names:
                del self.documents[kind, name]
        for kind, found in news["put"].items():
            self.documents.update({(kind, name): document for name, document in found.items()})

    def follow(self, board):
        self.place, text = board.since(self.place)
        if text:
            self.take(json.loads(text))


def test_a_copy_is_brought_up_to_date_with_what_has_changed_alone():
    board, copy = Board(), Copy()
    board.set("host", {"a": {"pool": "free"}, "b": {"pool": "free"}})
    copy.follow(board)
    board.set("host", {"a": {"pool": "free"}, "b": {"pool": "defunct"}})
    _, text = board.since(copy.place)
    assert json.loads(text) == {"reset": False, "put": {"host": {"b": {"pool": "defunct"}}}, "gone": {}}
    copy.follow(board)
    board.set("host", {"b": {"pool": "defunct"}})
    copy.follow(board)
    assert copy.documents == {("host", "b"): {"pool": "defunct"}}
    assert copy.resets == 1
    assert board.since(copy.place) == (copy.place, "")


def test_the_same_documents_again_are_no_news():
    board = Board()
    board.set("host", {"a": {"pool": "free"}})
    place = board.place
    board.set("host", {"a": {"pool": "free"}})
    assert board.place == place


def test_what_has_gone_and_come_again_while_a_copy_was_away_is_there():
    board, copy = Board(), Copy()
    board.set("job", {"a": 1})
    copy.follow(board)
    board.set("job", {})
    board.set("job", {"a": 2})
    copy.follow(board)
    assert copy.documents == {("job", "a"): 2}


@pytest.mark.parametrize("place", ["", "nonsense", "otherlife.1", "{life}.99", "{life}.x", "{life}.-1"])
def test_a_copy_of_another_life_or_of_no_sense_is_made_anew(place):
    board, copy = Board(), Copy()
    board.set("host", {"a": 1})
    copy.documents[("host", "old")] = 1
    copy.place = place.format(life=board.place.split(".")[0])
    copy.follow(board)
    assert copy.documents == {("host", "a"): 1}


def test_a_copy_that_was_away_for_too_many_departures_is_made_anew(monkeypatch):
    monkeypatch.setattr("failavoid.monitor.display.board._TOMBSTONES", 3)
    board, copy = Board(), Copy()
    board.set("guest", {str(number): number for number in range(9)})
    copy.follow(board)
    board.set("guest", {"8": 8})
    copy.follow(board)
    assert copy.documents == {("guest", "8"): 8}
    assert copy.resets == 2


# -- values ------------------------------------------------------------------------------------------------------


def test_a_share_takes_a_byte_and_silence_has_one_of_its_own():
    assert list(api_bytes(encode(np.array([0.0, 1.0, 0.5, 7.0, -1.0, np.nan])))) == [0, 254, 127, 254, 0, UNKNOWN]


def api_bytes(text):
    import base64

    return base64.b64decode(text)


def test_the_recent_past_stays_within_its_memory_and_its_time():
    few, short = Recent(1e9, limit_bytes=10 * 9 * 2 * 4), Recent(5.0)
    for second in range(100):
        few.add(float(second), np.full((9, 4), second / 100))
        short.add(float(second), np.full((9, 4), second / 100))
    assert few.begin() == 90.0
    assert short.begin() == 94.0
    times, values = few.of("unavailable", np.array([3, 7]), 95.0)
    assert list(times) == [95, 96, 97, 98, 99]
    assert values[0, 0] == pytest.approx(0.95, abs=1e-3)
    assert np.isnan(values[:, 1]).all()  # a host that was never heard of


def test_a_group_of_equals_has_a_band_as_wide_as_the_least_scale():
    centre, low, high = band(np.full((2, 5), 0.4), 5.0, 0.01)
    assert list(centre) == [0.4, 0.4]
    assert high - low == pytest.approx([0.1, 0.1])


# -- the API -----------------------------------------------------------------------------------------------------


@pytest.fixture
def there(tmp_path):
    with site(tmp_path) as (made, url):
        yield made, url


def events(url, metric="", place="", role="reader"):
    """(event, id, data) from the stream, as they come."""
    headers = {**bearer(role), **({"Last-Event-ID": place} if place else {})}
    with httpx.stream("GET", f"{url}/live/stream?metric={metric}", headers=headers, timeout=20) as answer:
        assert answer.status_code == 200, answer.read()
        ident, name = "", ""
        for line in answer.iter_lines():
            word, _, rest = line.partition(": ")
            if word == "id":
                ident = rest
            elif word == "event":
                name = rest
            elif word == "data":
                yield name, ident, json.loads(rest)


def test_the_pages_are_for_everybody_and_what_they_show_is_not(there):
    _, url = there
    page = httpx.get(f"{url}/display/")
    assert page.status_code == 200
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for path in ("/live/stream", "/live/cores?hosts=host1", "/live/hosts/host1/history"):
        assert httpx.get(url + path).status_code == 401
        assert httpx.get(f"{url}/display/../{path}").status_code == 401


def test_the_pages_load_nothing_from_elsewhere():
    for path in [*PAGES.rglob("*.html"), *PAGES.rglob("*.js"), *PAGES.rglob("*.css")]:
        if "vendor" not in path.parts:
            # SVG's namespace is a name, not an address
            assert set(re.findall(r"https?://[^\"'\s]+", path.read_text())) <= {"http://www.w3.org/2000/svg"}, path


def test_the_vendored_library_is_as_its_author_published_it():
    folder = PAGES / "vendor/uplot"
    sums = dict(reversed(line.split()) for line in (folder / "SHA256SUMS").read_text().splitlines())
    assert set(sums) == {"uPlot.esm.js", "uPlot.min.css", "LICENSE"}
    for name, expected in sums.items():
        assert sha256((folder / name).read_bytes()).hexdigest() == expected, name


def test_a_browser_is_sent_the_machine_then_what_changes(there):
    made, url = there
    copy, values = Copy(), {}
    for name, ident, data in events(url):
        if name == "documents":
            copy.take(data)
            copy.place = ident
        else:
            values = data
        known = copy.documents.get(("host", "host1"), {})
        if known.get("column", -1) >= 0 and values.get("values"):
            break
    assert {name for kind, name in copy.documents if kind == "host"} == {f"host{n}" for n in range(1, 6)}
    assert copy.documents["guest", "guest3"]["rank"] == 2
    column = copy.documents["host", "host1"]["column"]
    assert api_bytes(values["values"])[column] / 254 == pytest.approx(0.3, abs=0.02)
    assert copy.documents["service", "monitor"]["metric"] == values["metric"] == "unavailable"
    made.until(lambda: made.monitor.display.watchers == 0)  # the browser has gone

    made.world.manager.membership.hosts[4].pool = "defunct"
    made.world.manager.change()
    for name, _, data in events(url, place=copy.place):
        if name == "documents":
            assert not data["reset"]
            copy.take(data)
            if copy.documents["host", "host5"]["pool"] == "defunct":
                break


def test_each_browser_chooses_its_metric_and_a_wrong_one_is_named(there):
    _, url = there
    name, _, data = next(one for one in events(url, metric="cpu") if one[0] == "values")
    assert (name, data["metric"]) == ("values", "cpu")
    answer = httpx.get(f"{url}/live/stream?metric=colour", headers=bearer("reader"))
    assert answer.status_code == 422
    assert "use one of unavailable, active" in answer.json()["detail"]


def test_a_host_is_shown_over_time_among_its_peers(there):
    made, url = there
    made.used["host1"] = 0.45
    since = time.time()

    def history():
        return from_dict(
            HostHistory, httpx.get(f"{url}/live/hosts/host1/history?since={since}", headers=bearer("reader")).json()
        )

    made.until(lambda: len(history().times) > 8)
    found = history()
    assert found.peers == 2
    assert found.values[-1] == pytest.approx(0.45, abs=0.02)
    assert found.centre[-1] == pytest.approx(0.3, abs=0.02)
    assert found.low[-1] < found.centre[-1] < found.high[-1] < found.values[-1]
    assert (found.threshold, found.failure) == (0.75, 0.9)


def test_the_cores_of_the_hosts_that_are_seen_are_told(there):
    made, url = there
    ask = lambda: httpx.get(f"{url}/live/cores?hosts=host1,host2,nobody", headers=bearer("reader")).json()  # noqa: E731
    made.until(lambda: len(ask()) == 2)
    assert [len(one["cores"]) for one in ask()] == [CORES, CORES]
    assert httpx.get(f"{url}/live/cores?hosts={'h,' * 600}", headers=bearer("reader")).status_code == 422


def test_an_evacuation_is_on_the_board_as_it_happens_and_can_be_seen_again(there):
    made, url = there
    made.world.stuck = True
    made.far(30, 10)
    made.world.ranks_behave()
    (evacuation,) = made.world.controller.order("host1", "fan is loud", "ada")
    copy, seen = Copy(), []
    for name, _, data in events(url):
        if name != "documents":
            continue
        copy.take(data)
        one = copy.documents.get(("evacuation", evacuation.id))
        if one and one["state"] not in seen:
            seen.append(one["state"])
        if ("progress", evacuation.id) in copy.documents and made.world.stuck:
            far = copy.documents["progress", evacuation.id]
            assert [one["processed"] for one in far] == [30 << 20, 30 << 20]
            made.world.stuck = False
        if one and one["state"] == "RETIRED":
            break
    assert "MIGRATING" in seen
    assert {move["state"] for move in one["migrations"]} == {"moved"}
    answer = httpx.get(f"{url}/live/evacuations/{evacuation.id}/recording", headers=bearer("reader"))
    found = from_dict(Recording, answer.json())
    assert found.hosts == [f"host{n}" for n in range(1, 6)]
    assert len(found.frames) == len(found.times) > 3
    assert api_bytes(found.frames[-1])[0] / 254 == pytest.approx(0.3, abs=0.02)
    assert httpx.get(f"{url}/live/evacuations/none/recording", headers=bearer("reader")).status_code == 404


def test_an_operator_confirms_and_cancels_and_nobody_else(tmp_path):
    with site(tmp_path, mode="recommend") as (made, url):
        evacuation = made.world.alarm()
        path = f"{url}/live/evacuations/{evacuation.id}"
        made.world.until_state(evacuation, "LEASED")
        for act in ("confirm", "cancel"):
            assert httpx.post(f"{path}/{act}", headers=bearer("reader"), json={}).status_code == 403
        answer = httpx.post(f"{path}/cancel", headers=bearer("operator", "ada"), json={"reason": "not now"})
        assert answer.status_code == 200, answer.text
        ended = made.world.until_state(evacuation, "CANCELLED")
        assert "ada: not now" in ended.error
        late = httpx.post(f"{path}/confirm", headers=bearer("operator", "ada"), json={})
        assert late.status_code == 409
        assert "CANCELLED" in late.json()["detail"]  # the controller's own words


def test_while_the_controller_is_away_the_board_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("failavoid.monitor.evacuations.POLL_S", 0.5)
    with site(tmp_path) as (made, url):
        made.until(lambda: made.monitor.evacuations.status()["reachable"])
        made.monitor.evacuations._client.base_url = "http://127.0.0.1:1"
        for name, _, data in events(url):
            if name == "documents" and data["put"].get("service", {}).get("controller", {}).get("reachable") is False:
                break
        answer = httpx.post(f"{url}/live/evacuations/e/confirm", headers=bearer("operator"), json={})
        assert answer.status_code == 503


def test_what_was_before_a_restart_is_drawn_from_the_archive(tmp_path):
    (tmp_path / "state").mkdir()
    with site(tmp_path / "first", state=str(tmp_path / "state")) as (made, url):
        since = time.time()
        made.until(lambda: made.monitor.display.recent.begin() < time.time() - 1.0)
    restarted = time.time()
    with site(tmp_path / "second", state=str(tmp_path / "state")) as (made, url):
        made.until(lambda: made.monitor.display.recent.begin() < time.time())
        ask = f"{url}/live/hosts/host1/history?since={since}"
        made.until(lambda: httpx.get(ask, headers=bearer("reader")).json()["times"][-1:] > [restarted])
        found = from_dict(HostHistory, httpx.get(ask, headers=bearer("reader")).json())
        assert found.times == sorted(found.times)
        assert found.times[0] < restarted < found.times[-1]
