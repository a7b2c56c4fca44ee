"""Names, tokens and messages: what crosses between the parts is checked."""

import dataclasses

import pytest

from failavoid.shared import messages
from failavoid.shared.names import InvalidNameError, check_name
from failavoid.shared.tokens import Identity, InvalidTokenError, mint, read_secret, verify

SECRET = b"s" * 48


@pytest.mark.parametrize("name", ["host01", "a", "job-3-g01", "x" * 63])
def test_ordinary_names_are_accepted(name):
    assert check_name("host", name) == name


@pytest.mark.parametrize("name", ["", "x" * 64, "Host", "a.b", "{{ lookup('pipe', 'id') }}", "a\n", "../x", None])
def test_a_name_that_could_do_harm_is_refused_and_named(name):
    with pytest.raises(InvalidNameError, match="guest name"):
        check_name("guest", name)


def test_a_token_carries_who_it_was_made_for():
    assert verify(SECRET, mint(SECRET, "guest", "g001", "uuid-1")) == Identity("guest", "g001", "uuid-1")


def test_a_token_of_another_site_is_refused():
    with pytest.raises(InvalidTokenError):
        verify(SECRET, mint(b"t" * 48, "operator", "admin"))


def test_a_token_with_another_role_written_into_it_is_refused():
    forged = mint(SECRET, "guest", "g001").replace("guest", "operator", 1)
    with pytest.raises(InvalidTokenError):
        verify(SECRET, forged)


@pytest.mark.parametrize("token", ["", "x", "a.b.c", "guest.a.b.c.d", "nobody.a.b.c"])
def test_a_malformed_token_is_refused(token):
    with pytest.raises(InvalidTokenError):
        verify(SECRET, token)


def test_words_that_would_blur_a_token_are_refused():
    with pytest.raises(ValueError, match="must not be empty"):
        mint(SECRET, "guest", "a.b")


def test_a_secret_too_short_to_be_one_is_refused(tmp_path):
    (tmp_path / "secret").write_text("short\n")
    with pytest.raises(ValueError, match="at least 32"):
        read_secret(tmp_path / "secret")


def evacuation() -> messages.Evacuation:
    evidence = messages.Evidence(0.8, 0.4, 0.01, 12.0, 0.75, predicted_failure_interval_s=[20.0, 40.0])
    alarm = messages.Alarm("alarm-1", 5.0, "host01", "job-1", "robust", "unavailable", 0.8, evidence)
    return messages.Evacuation(
        "evac-1",
        "host01",
        "job-1",
        "LEASED",
        alarm=alarm,
        steps=[messages.Step("leased", 1.0, 2.0)],
        migrations=[messages.Migration("g001", "host01", "host05", [0], 0)],
    )


def test_messages_survive_the_way_through_json():
    assert messages.from_dict(messages.Evacuation, messages.to_dict(evacuation())) == evacuation()


def test_a_document_shares_nothing_with_its_message():
    message = evacuation()
    assert messages.to_dict(message) == dataclasses.asdict(message)
    document = messages.to_dict(message)
    document["steps"].append("more")
    assert message == evacuation()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"steps": [{"name": "x"}]}, r"Evacuation.steps\[0\]: field 'begun' is missing"),
        ({"host": 3}, "Evacuation.host: str is needed"),
        ({"epoch": True}, "Evacuation.epoch: int is needed"),
        ({"colour": 1}, "unknown field 'colour'"),
        ({"migrations": {}}, "Evacuation.migrations: a list is needed"),
    ],
)
def test_a_document_of_the_wrong_form_is_refused_with_the_field_at_fault(change, complaint):
    with pytest.raises(ValueError, match=complaint):
        messages.from_dict(messages.Evacuation, {**messages.to_dict(evacuation()), **change})


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 10**400])
def test_a_number_that_is_not_finite_is_refused_where_it_comes_in(number):
    with pytest.raises(ValueError, match=r"JobAlive\.timeout: a finite number is needed"):
        messages.from_dict(messages.JobAlive, {"state": "running", "timeout": number})


def test_text_that_nothing_can_write_is_refused_where_it_comes_in():
    with pytest.raises(ValueError, match=r"Reason\.reason: '\\ud800' is no Unicode text"):
        messages.from_dict(messages.Reason, {"reason": "\ud800"})
