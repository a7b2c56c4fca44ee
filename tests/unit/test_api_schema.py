"""The services' OpenAPI, and requests made up from it: no service fails, and answers are as described."""

import pytest
import schemathesis
import services
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance
from services import SERVICES, bearer

from failavoid.shared.tokens import ROLES

EXAMPLES = 15  # a route and a way of generating; for all services that takes about half a minute
CHECKS = [not_a_server_error, status_code_conformance, response_schema_conformance]
NAMES = ("host1", "host2", "guest1", "job-1", "lease-1", "no-such")

quickly = settings(
    max_examples=EXAMPLES, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


@pytest.fixture(params=SERVICES)
def service(request, tmp_path, monkeypatch):
    with services.started(request.param, tmp_path, monkeypatch) as service:
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
    for operation in operations(service):
        probe(operation, mode)


def probe(operation, mode):
    """Send made-up requests with each role's token; names in paths are those of the played site now and then."""

    @quickly
    @given(data=st.data())
    def send(data):
        case = data.draw(operation.as_strategy(mode))
        do_not_wait(case)
        for parameter in case.path_parameters or {}:
            name = data.draw(st.sampled_from(NAMES) | st.none())
            if name:
                case.path_parameters[parameter] = name
        role = data.draw(st.sampled_from(ROLES))
        headers = bearer(role, *(("guest1", "uuid-1") if role == "guest" else ()))
        case.call_and_validate(headers=headers, checks=CHECKS)

    send()


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
