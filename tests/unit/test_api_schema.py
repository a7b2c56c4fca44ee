"""The services' OpenAPI, and requests made up from it: no service fails, and answers are as described."""

import played_services
import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from played_services import SERVICES, bearer
from resource_manager_site import KEY
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

from failavoid.shared.tokens import ROLES

EXAMPLES = 30  # a route and a way of generating them
CHECKS = [not_a_server_error, status_code_conformance, response_schema_conformance]
SENSE = {  # for fields of made-up documents: what gets past the first look
    "id": "a-1",
    "job": "job-1",
    "host": "host1",
    "guests": ["guest1"],
    "evacuation": "evacuation-1",
    "state": "ready",
    "user": "ada",
    "uid": 1000,
    "gid": 1000,
    "public_key": KEY,
    "hosts": 1,
    "guests_per_host": 1,
    "guest_memory_kb": 262144,
    "policy": "migrate",
    "every": 1,
    "name": "job",
}

quickly = settings(
    max_examples=EXAMPLES, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


@pytest.fixture(params=SERVICES)
def service(request, tmp_path, monkeypatch):
    with played_services.started(request.param, tmp_path, monkeypatch) as service:
        yield service


def operations(service):
    schema = schemathesis.openapi.from_asgi("/openapi.json", service.app, headers=bearer("reader"))
    return [found.ok() for found in schema.get_all_operations()]


def do_not_wait(case):
    """Have long polls end at once, but where what was made up is no number: that is to be refused."""
    if any(parameter.name == "timeout" for parameter in case.operation.query):
        asked = (case.query or {}).get("timeout", 0)
        if isinstance(asked, (int, float)) and asked >= 0:
            case.query = {**(case.query or {}), "timeout": 0.01}


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["valid", "invalid"])
def test_no_request_makes_a_service_fail_and_answers_are_as_described(service, mode):
    if service.name == "resource manager":
        service.world.ready()  # so that there are a job and its guests
    for operation in operations(service):
        probe(service, operation, mode)


def probe(service, operation, mode):
    """Send made-up requests, mostly with a token that may; now and then with names that are there, and with sense."""
    route = (operation.method.upper(), operation.path)
    allowed = sorted(service.table[route])

    @quickly
    @given(data=st.data())
    def send(data):
        case = data.draw(operation.as_strategy(mode))
        do_not_wait(case)
        there = names(service)
        for parameter in case.path_parameters or {}:
            case.path_parameters[parameter] = data.draw(st.sampled_from([case.path_parameters[parameter], *there]))
        if isinstance(case.body, dict) and data.draw(st.booleans()):
            case.body = {key: SENSE.get(key, value) for key, value in case.body.items()}
        role = data.draw(st.sampled_from([*allowed * 3, *ROLES]))
        case.headers = {}  # or a made-up Authorization would take the place of the token
        case.call_and_validate(headers=token(service, role, case.path_parameters), checks=CHECKS)

    send()


def names(service):
    """What may stand in a path: all there is, a lease and an evacuation that may be there, and one that is not."""
    membership = service.membership()
    there = [one.name for one in (*membership.hosts, *membership.guests)] + [job.id for job in membership.jobs]
    evacuations = [ident for ident, _ in service.state()] if service.name == "controller" else []
    return [*there, *evacuations, "lease-1", "no-such"]


def token(service, role, path_parameters):
    """A token of that role; a guest's is the one of the guest in the path, if that is there."""
    guests = {guest.name: guest.uuid for guest in service.membership().guests}
    name = str((path_parameters or {}).get("name"))
    if role == "guest" and name in guests:
        return bearer(role, name, guests[name])
    return bearer(role, "ada")


def test_every_route_says_what_it_takes_and_gives(service):
    for path, methods in service.app.openapi()["paths"].items():
        for method, described in methods.items():
            where = f"{method} {path}"
            answer = described["responses"]["200"]["content"]["application/json"]["schema"]
            assert {"$ref", "items", "anyOf"} & set(answer), where
            assert {"401", "403", "404", "409", "422"} <= set(described["responses"]), where
            if "requestBody" in described:
                assert "$ref" in described["requestBody"]["content"]["application/json"]["schema"], where


def test_whoever_has_a_token_may_read_the_description_and_nobody_else(service):
    api = TestClient(service.app)
    assert api.get("/openapi.json").status_code == 401
    for role in ROLES:
        assert api.get("/openapi.json", headers=bearer(role)).status_code == 200


def test_no_made_up_request_without_a_token_changes_anything(service):
    before = service.state()
    described = operations(service)

    @quickly
    @given(data=st.data())
    def send(data):
        case = data.draw(data.draw(st.sampled_from(described)).as_strategy())
        assert case.call(headers={"Authorization": ""}).status_code == 401

    send()
    assert service.state() == before
