"""What the datagrams of samples let through, and what not."""

import functools
import time

import pytest

from failavoid.shared.samples import MAC_BYTES, Decoder, Encoder, RefusedError
from failavoid.shared.tokens import mint

SECRET = b"s" * 48
NOW = 1_700_000_000.0
METRICS = {"mem_total_kb": 2097152, "mem_available_kb": 1048576, "cpu": 0.25}


def encoder(node="host01", role="host", nonce="0", secret=SECRET):
    return Encoder(mint(secret, role, node, nonce))


@pytest.fixture
def decoder():
    return Decoder(functools.partial(mint, SECRET), started=NOW - 100)


def test_a_sample_arrives_as_it_was_sent(decoder):
    received = decoder.decode(encoder().encode(NOW, METRICS, [0.5, 0.0]), NOW + 0.2)
    assert (received.role, received.subject, received.nonce, received.time) == ("host", "host01", "0", NOW)
    assert received.content() == (METRICS, [0.5, 0.0])


def test_any_changed_byte_is_refused(decoder):
    datagram = encoder().encode(NOW, METRICS, [])
    for position in range(len(datagram)):
        changed = bytearray(datagram)
        changed[position] ^= 1
        with pytest.raises(RefusedError):
            decoder.decode(bytes(changed), NOW)
    assert decoder.decode(datagram, NOW)


def test_a_sample_cut_short_is_refused(decoder):
    datagram = encoder().encode(NOW, METRICS, [])
    for length in range(len(datagram)):
        with pytest.raises(RefusedError):
            decoder.decode(datagram[:length], NOW)


def test_noise_is_refused(decoder):
    for noise in (b"", b"\n", b"FA1 a b c d\n", b"FA1 host.x 1 1 1\n{}" + bytes(32), bytes(2000)):
        with pytest.raises(RefusedError):
            decoder.decode(noise, NOW)


def test_a_token_of_another_site_is_refused(decoder):
    with pytest.raises(RefusedError, match="host01 refused: it was not made with this site's secret"):
        decoder.decode(encoder(secret=b"x" * 48).encode(NOW, METRICS, []), NOW)


def test_a_node_cannot_speak_for_another(decoder):
    token = mint(SECRET, "host", "host01").replace("host01", "host02")
    with pytest.raises(RefusedError):
        decoder.decode(Encoder(token).encode(NOW, METRICS, []), NOW)


def test_only_hosts_and_guests_send_samples(decoder):
    with pytest.raises(RefusedError, match="only hosts and guests"):
        decoder.decode(encoder("someone", "user").encode(NOW, METRICS, []), NOW)


def test_a_sample_is_taken_once(decoder):
    datagram = encoder().encode(NOW, METRICS, [])
    decoder.decode(datagram, NOW)
    with pytest.raises(RefusedError, match="older than what was taken before"):
        decoder.decode(datagram, NOW)


def test_an_earlier_sample_is_refused_after_a_later_one(decoder):
    agent = encoder()
    first, second = agent.encode(NOW, METRICS, []), agent.encode(NOW + 1, METRICS, [])
    decoder.decode(second, NOW + 1)
    with pytest.raises(RefusedError):
        decoder.decode(first, NOW + 1)


def test_a_clock_set_back_does_not_silence_an_agent(decoder):
    agent = encoder()
    decoder.decode(agent.encode(NOW, METRICS, []), NOW)
    assert decoder.decode(agent.encode(NOW - 5, METRICS, []), NOW + 1)


def test_samples_of_an_agents_earlier_start_cannot_be_played_again(decoder):
    before, after = encoder(), encoder()
    recorded = before.encode(NOW, METRICS, [])
    decoder.decode(before.encode(NOW + 1, METRICS, []), NOW + 1)
    decoder.decode(after.encode(NOW + 2, METRICS, []), NOW + 2)
    with pytest.raises(RefusedError):
        decoder.decode(recorded, NOW + 2)
    assert decoder.decode(after.encode(NOW + 3, METRICS, []), NOW + 3)


def test_samples_from_before_the_monitors_start_cannot_be_played_to_it():
    decoder = Decoder(functools.partial(mint, SECRET), started=NOW)
    with pytest.raises(RefusedError):
        decoder.decode(encoder().encode(NOW - 1, METRICS, []), NOW + 1)


@pytest.mark.parametrize("off", [-31.0, 31.0, float("nan"), float("inf")])
def test_a_clock_that_is_off_is_refused_with_the_way_out(decoder, off):
    with pytest.raises(RefusedError, match="synchronise the clocks"):
        decoder.decode(encoder().encode(NOW + off, METRICS, []), NOW)


@pytest.mark.parametrize(
    "metrics", [{"cpu": float("nan")}, {"cpu": "much"}, {"cpu": None}, {"cpu": True}, {"cpu": [1]}, [1]]
)
def test_content_that_is_no_numbers_is_refused(decoder, metrics):
    received = decoder.decode(encoder().encode(NOW, metrics, []), NOW)
    with pytest.raises(RefusedError, match="malformed"):
        received.content()


@pytest.mark.parametrize("number", [b"1e999", b"-1e999", b"1" + b"0" * 400])
@pytest.mark.parametrize("where", ["metrics", "cores"])
def test_a_number_that_no_float_can_hold_is_refused(decoder, number, where):
    received = decoder.decode(encoder().encode(NOW, METRICS, []), NOW)
    metrics, cores = (number, b"0.5") if where == "metrics" else (b"0.5", number)
    received.body = b'{"metrics":{"cpu":%s},"cores":[%s]}' % (metrics, cores)
    with pytest.raises(RefusedError, match="malformed"):
        received.content()


def test_a_later_agents_further_content_does_no_harm(decoder):
    received = decoder.decode(encoder().encode(NOW, METRICS, []), NOW)
    received.body = received.body[:-1] + b',"new":{"a":1}}'
    assert received.content() == (METRICS, [])


def test_strangers_do_not_fill_the_memory(decoder):
    for number in range(100):
        with pytest.raises(RefusedError):
            decoder.decode(encoder(f"host{number}", secret=b"x" * 48).encode(NOW, METRICS, []), NOW)
    assert not decoder._keys
    assert not decoder._last


def test_a_new_guest_of_an_old_name_replaces_it(decoder):
    decoder.decode(encoder("guest-1", "guest", "uuid-1").encode(NOW, METRICS, []), NOW)
    received = decoder.decode(encoder("guest-1", "guest", "uuid-2").encode(NOW + 1, METRICS, []), NOW + 1)
    assert received.nonce == "uuid-2"
    assert len(decoder._keys) == 1


def test_decoding_is_cheap():
    """Not a limit, a figure: printed for whoever looks (pytest -s)."""
    decoder = Decoder(functools.partial(mint, SECRET), started=NOW - 100)
    agents = [encoder(f"host{number:05d}") for number in range(5000)]
    for second in (0.0, 1.0):  # the second time around keys are known
        datagrams = [agent.encode(NOW + second, METRICS, [0.1] * 24) for agent in agents]
        began = time.process_time()
        taken = [decoder.decode(datagram, NOW + second) for datagram in datagrams]
        decoded = time.process_time()
        contents = [received.content() for received in taken]
        done = time.process_time()
        assert len(contents) == 5000
    print(
        f"{(decoded - began) / 5000 * 1e6:.1f} us to check, {(done - decoded) / 5000 * 1e6:.1f} us to parse "
        f"a sample of {len(datagrams[0])} bytes ({MAC_BYTES} of them the MAC)"
    )
