"""The services' API over TLS: who is spoken with, who is not, and what is said then."""

import http.server
import json
import socket
import ssl
import subprocess
import sys
import threading
import time

import httpx
import pytest
from site_certificates import Authority, certificates

from failavoid.agent.ranks import Ranks
from failavoid.agent.settings import Settings as AgentSettings
from failavoid.cli import api
from failavoid.cli.settings import NOT_TRUSTED, CliError
from failavoid.monitor.settings import Settings
from failavoid.resource_manager.hosts import heard_by_monitor
from failavoid.services import SettingsError, Tls, client, load_settings
from failavoid.shared import http as shared_http
from failavoid.shared.tokens import mint

SECRET = b"s" * 48
TOKEN = mint(SECRET, "reader", "someone")
PATIENCE_S = 30.0


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("site") / "ca")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("stranger") / "ca")


@pytest.fixture(scope="module")
def service(authority, tmp_path_factory):
    """The monitor's process, over TLS; its URL."""
    folder = tmp_path_factory.mktemp("service")
    certificate, key = authority.issue("head01", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (folder / "secret").write_bytes(SECRET)
    (folder / "monitor.yml").write_text(
        f"listen: 127.0.0.1\nport: {port}\nsecret: {folder}/secret\n"
        f"tls: {{certificate: {certificate}, key: {key}, authority: {authority.certificate}}}\n"
        "resource_manager: https://127.0.0.1:1\ncontroller: https://127.0.0.1:1\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "failavoid.monitor.service", "--settings", folder / "monitor.yml"]
    )
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            break
        except ConnectionRefusedError:
            assert process.poll() is None, "the monitor has ended"
            assert time.monotonic() < deadline, "the monitor does not listen"
            time.sleep(0.05)
    yield f"https://127.0.0.1:{port}"
    process.terminate()
    process.wait(PATIENCE_S)


def test_a_service_and_an_agent_speak_with_a_service_whose_certificate_the_authority_signed(service, authority):
    with client(service, TOKEN, str(authority.certificate)) as service_client:
        assert service_client.get("/alarms").json() == []
    assert shared_http.call("GET", f"{service}/alarms", TOKEN, authority=str(authority.certificate)) == []


def test_the_resource_manager_asks_the_monitor_of_a_host_that_is_to_return(service, authority, stranger):
    heard = heard_by_monitor(service, SECRET, str(authority.certificate))
    assert "has heard nothing of host1's agent" in heard("host1")
    heard = heard_by_monitor(service, SECRET, str(stranger.certificate))
    assert "CERTIFICATE_VERIFY_FAILED" in heard("host1")


def test_the_command_line_speaks_with_the_sites_services_alone(service, authority, stranger, monkeypatch):
    monkeypatch.setenv("FAILAVOID_MONITOR_URL", service)
    monkeypatch.setenv("FAILAVOID_TOKEN", TOKEN)
    monkeypatch.setenv("FAILAVOID_AUTHORITY", str(authority.certificate))
    assert api.call("monitor", "GET", "/alarms") == []
    monkeypatch.setenv("FAILAVOID_AUTHORITY", str(stranger.certificate))
    with pytest.raises(CliError, match=r"can't be trusted: .*authority\.pem of the head, has not signed") as refused:
        api.call("monitor", "GET", "/alarms")
    assert refused.value.status == NOT_TRUSTED
    monkeypatch.setenv("FAILAVOID_AUTHORITY", "/no/such.pem")
    with pytest.raises(CliError, match=r"can't be read from /no/such\.pem: No such file") as refused:
        api.call("monitor", "GET", "/alarms")
    assert refused.value.status == NOT_TRUSTED


def test_an_agent_asks_for_notices_over_tls(recorder, authority, tmp_path):
    settings = AgentSettings("g1", "guest", TOKEN, ("", 1), recorder.url, authority=str(authority.certificate))
    agent = Ranks(settings, str(tmp_path))
    threading.Thread(target=agent.listen, daemon=True).start()
    deadline = time.monotonic() + PATIENCE_S
    while not recorder.heard:
        assert time.monotonic() < deadline, "the agent asks for no notice"
        time.sleep(0.02)
    assert recorder.heard[0][0].startswith("/guests/g1/notice?after=0&timeout=")


def test_nobody_speaks_with_a_service_that_another_authority_signed(service, stranger):
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        client(service, TOKEN, str(stranger.certificate)).get("/alarms")
    with pytest.raises(shared_http.UntrustedError, match="has not signed its certificate") as refused:
        shared_http.call("GET", f"{service}/alarms", TOKEN, authority=str(stranger.certificate))
    assert refused.value.status == 0


def test_a_certificate_counts_at_its_own_addresses_alone(authority):
    certificate, key = authority.issue("host01", "10.0.0.1")
    with Recorder(certificate, key) as elsewhere:
        with pytest.raises(shared_http.UntrustedError, match=r"not valid for '127\.0\.0\.1'.*hypervisor_head_names"):
            shared_http.call("GET", f"{elsewhere.url}/x", TOKEN, authority=str(authority.certificate))
        with pytest.raises(httpx.ConnectError, match=r"not valid for '127\.0\.0\.1'"):
            client(elsewhere.url, TOKEN, str(authority.certificate)).get("/x")
        assert elsewhere.heard == []  # not even the token


def test_a_clock_that_is_off_is_what_a_certificate_out_of_its_time_speaks_of(tmp_path, monkeypatch):
    monkeypatch.setattr(certificates, "CLOCKS_APART_S", -86400)
    site = Authority(tmp_path / "ca")
    with Recorder(*site.issue("head01", "127.0.0.1")) as service:
        with pytest.raises(shared_http.UntrustedError, match="not yet valid: compare this machine's clock"):
            shared_http.call("GET", f"{service.url}/x", TOKEN, authority=str(site.certificate))
        assert service.heard == []


def test_a_service_does_not_answer_in_the_clear(service):
    with pytest.raises(httpx.TransportError):
        httpx.get(service.replace("https://", "http://"))


@pytest.mark.parametrize(
    ("version", "accepted"),
    [(ssl.TLSVersion.TLSv1_1, False), (ssl.TLSVersion.TLSv1_2, True), (ssl.TLSVersion.TLSv1_3, True)],
)
def test_a_service_speaks_tls_from_1_2_on(service, version, accepted):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")  # or this side would not offer 1.1 at all
    context.minimum_version = context.maximum_version = version
    where = httpx.URL(service)
    with socket.create_connection((where.host, where.port)) as plain:
        if accepted:
            with context.wrap_socket(plain) as secured:
                assert secured.version() == version.name.replace("_", ".")
        else:
            with pytest.raises(ssl.SSLError):
                context.wrap_socket(plain)


def test_an_authority_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(SettingsError, match=r"no\.pem.*tls\.authority"):
        client("https://127.0.0.1:1", TOKEN, str(tmp_path / "no.pem"))
    with pytest.raises(shared_http.UntrustedError, match=r"no\.pem: No such file"):
        shared_http.call("GET", "https://127.0.0.1:1/", TOKEN, authority=str(tmp_path / "no.pem"))


def test_a_certificate_that_cannot_be_used_ends_the_service_with_one_sentence(tmp_path, authority):
    (tmp_path / "secret").write_bytes(SECRET)
    (tmp_path / "monitor.yml").write_text(
        f"listen: 127.0.0.1\nport: 1\nsecret: {tmp_path}/secret\n"
        f"tls: {{certificate: {tmp_path}/no.pem, key: {tmp_path}/no.pem, authority: {authority.certificate}}}\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "failavoid.monitor.service", "--settings", tmp_path / "monitor.yml"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert f"failavoid monitor: certificate {tmp_path}/no.pem" in done.stderr
    assert "Traceback" not in done.stderr


def test_tls_can_be_off_on_this_machine_alone(tmp_path):
    (tmp_path / "monitor.yml").write_text("listen: 127.0.0.1\ntls: {enabled: false}\n")
    assert not load_settings(Settings, tmp_path / "monitor.yml").tls.enabled
    (tmp_path / "monitor.yml").write_text("listen: 0.0.0.0\ntls: {enabled: false}\n")
    with pytest.raises(SettingsError, match=r"line 2.*tokens would cross the network in the clear"):
        load_settings(Settings, tmp_path / "monitor.yml")
    assert Tls().enabled


# -- connections that stay open ----------------------------------------------------------------------------------


class Recorder:
    """An HTTP server that keeps connections open and notes, for each request, who is at their other end."""

    def __init__(self, certificate=None, key=None):
        self.heard = []
        recorder = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                recorder.heard.append((self.path, self.client_address[1]))
                text = json.dumps({"path": self.path}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)
                if self.path == "/last":
                    self.close_connection = True  # without a word of it, as a service that ends

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate, key)
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
            self.url = self.url.replace("http", "https")

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(params=["http", "https"])
def recorder(request, authority):
    files = authority.issue("head01", "127.0.0.1") if request.param == "https" else ()
    with Recorder(*files) as running:
        yield running


def test_polls_go_over_one_connection(recorder, authority):
    agent = shared_http.Client(TOKEN, str(authority.certificate))
    for number in range(3):
        assert agent.call("GET", f"{recorder.url}/{number}") == {"path": f"/{number}"}
    agent.close()
    assert len({port for _, port in recorder.heard}) == 1


def test_a_connection_that_was_closed_meanwhile_is_opened_again_without_a_word(recorder, authority):
    agent = shared_http.Client(TOKEN, str(authority.certificate))
    agent.call("GET", f"{recorder.url}/last")
    assert agent.call("GET", f"{recorder.url}/next") == {"path": "/next"}
    agent.close()
    assert [path for path, _ in recorder.heard] == ["/last", "/next"]
    assert len({port for _, port in recorder.heard}) == 2


def test_a_service_that_is_gone_is_an_error_and_found_again_later(recorder, authority):
    agent = shared_http.Client(TOKEN, str(authority.certificate))
    with socket.create_server(("127.0.0.1", 0)) as free:
        nobody = f"{recorder.url.split(':')[0]}://127.0.0.1:{free.getsockname()[1]}"
    agent.call("GET", f"{recorder.url}/1")
    with pytest.raises(shared_http.ApiError, match="no answer") as gone:
        agent.call("GET", f"{nobody}/2")
    assert gone.value.status == 0
    assert agent.call("GET", f"{recorder.url}/3") == {"path": "/3"}
    agent.close()
