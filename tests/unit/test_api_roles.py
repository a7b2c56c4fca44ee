"""Who may do what: every route of the three services, against the table in docs/architecture.md."""

import re

import played_services
import pytest
from fastapi.testclient import TestClient
from played_services import SERVICES, bearer

from failavoid.shared.tokens import ROLES, mint


@pytest.fixture(params=SERVICES)
def named(request, tmp_path, monkeypatch):
    with played_services.started(request.param, tmp_path, monkeypatch) as service:
        yield service, service.table


def ask(service, method, path, headers=None):
    return TestClient(service.app).request(method, re.sub(r"{\w+}", "no-such", path), headers=headers, json={})


def test_every_route_is_in_the_table_and_the_table_has_no_other(named):
    service, table = named
    assert service.routes() == sorted(table)


def test_a_role_that_the_table_does_not_name_is_refused_and_changes_nothing(named):
    service, table = named
    before = service.state()
    for (method, path), allowed in table.items():
        for role in set(ROLES) - allowed:
            answer = ask(service, method, path, bearer(role))
            assert answer.status_code == 403, (method, path, role)
            assert f"this one is of role {role}" in answer.json()["detail"], (method, path, role)
    assert service.state() == before


def test_a_role_that_the_table_names_is_let_in(named):
    service, table = named
    for (method, path), allowed in table.items():
        for role in allowed - ({"guest"} if "/guests/" in path else set()):
            answer = ask(service, method, path, bearer(role))
            assert "a token of role" not in answer.text, (method, path, role)


def test_strangers_are_refused_and_change_nothing(named):
    service, table = named
    before = service.state()
    forged = {"Authorization": f"Bearer {mint(b'x' * 48, 'operator', 'admin')}"}
    for method, path in table:
        assert ask(service, method, path).status_code == 401, (method, path)
        assert ask(service, method, path, forged).status_code == 401, (method, path)
    assert service.state() == before


def test_readers_and_agents_can_change_nothing(named):
    _, table = named
    for (method, path), allowed in table.items():
        if method != "GET":
            assert not allowed & {"reader", "host"}, (method, path)


@pytest.fixture
def controller(tmp_path, monkeypatch):
    with played_services.started("controller", tmp_path, monkeypatch) as service:
        yield service


@pytest.fixture
def resource_manager(tmp_path, monkeypatch):
    with played_services.started("resource manager", tmp_path, monkeypatch) as service:
        yield service


def test_a_guest_speaks_for_itself_alone_and_only_while_it_is_there(controller):
    guest, other = controller.world.manager.membership.guests[:2]
    api = TestClient(controller.app)
    own, others = bearer("guest", guest.name, guest.uuid), bearer("guest", other.name, other.uuid)
    for path, method in ((f"/guests/{guest.name}/notice?timeout=0", "GET"), (f"/guests/{guest.name}/report", "POST")):
        body = {"job": guest.job, "epoch": 1, "state": "ready", "ranks": 1}
        assert api.request(method, path, headers=own, json=body).status_code in (200, 409)  # no notice was given yet
        for stranger in (others, bearer("guest", guest.name, "uuid-of-an-earlier-one")):
            assert api.request(method, path, headers=stranger, json=body).status_code == 403


def test_a_users_token_ends_and_starts_no_other_users_job(resource_manager):
    job = resource_manager.world.ready()
    api = TestClient(resource_manager.app)
    for path, body in ((f"/jobs/{job.id}/ended", {"exit_status": 0}), (f"/jobs/{job.id}/started", {"command": ["x"]})):
        answer = api.post(path, json=body, headers=bearer("user", "eve"))
        assert answer.status_code == 403
        assert answer.json()["detail"] == f"job {job.id} is ada's"
    assert resource_manager.world.job(job.id).state == "ready"
    assert (
        resource_manager.world.ask(headers=bearer("user", "eve")).status_code == 403
    )  # nor asks for one in ada's name
