"""Where samples come from besides the agents: Prometheus and LDMS; all of it real but for the hosts."""

import contextlib
import csv
import shutil
import socket
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from failavoid.monitor.sources import Context, check_source, open_source
from failavoid.monitor.sources.prometheus import QUERIES
from failavoid.monitor.store import Store
from failavoid.shared.messages import Sample

PATIENCE_S = 60.0
NODE = """\
node_memory_MemTotal_bytes 67108864000
node_memory_MemAvailable_bytes 16777216000
node_memory_Active_bytes 1048576
node_memory_SwapTotal_bytes 2097152
node_memory_SwapFree_bytes 1048576
node_load1 3.5
node_edac_correctable_errors_total{{controller="0"}} 3
node_edac_correctable_errors_total{{controller="1"}} 4
node_edac_uncorrectable_errors_total{{controller="0"}} 1
node_hwmon_temp_celsius{{chip="a",sensor="temp1"}} 45
node_hwmon_temp_celsius{{chip="b",sensor="temp1"}} 71
node_hwmon_fan_rpm{{chip="a",sensor="fan1"}} 5000
node_hwmon_fan_rpm{{chip="a",sensor="fan2"}} 1200
node_cpu_seconds_total{{cpu="0",mode="idle"}} {quarter}
node_cpu_seconds_total{{cpu="1",mode="idle"}} {quarter}
node_cpu_seconds_total{{cpu="0",mode="user"}} {half}
node_pressure_cpu_waiting_seconds_total {half}
node_pressure_memory_waiting_seconds_total {quarter}
node_pressure_memory_stalled_seconds_total {quarter}
node_pressure_io_waiting_seconds_total {half}
"""


def context(store):
    return Context("127.0.0.1", 0, b"s" * 48, store, lambda _name, _uuid: False)


def eventually(condition):
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "this never came about"
        time.sleep(0.02)


@contextlib.contextmanager
def followed(kind, options, store):
    source = open_source(kind, options, context(store))
    source.start()
    try:
        yield source
    finally:
        source.stop()


# --- Prometheus


class NodeExporter(ThreadingHTTPServer):
    """Says what node_exporter says of a host whose counters grow by the clock."""

    def __init__(self):
        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_GET(self):
                passed = time.monotonic()
                body = NODE.format(half=passed / 2, quarter=passed / 4).encode()
                self.send_response(200)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()


@pytest.fixture
def exporter():
    server = NodeExporter()
    yield server
    server.shutdown()
    server.server_close()


@contextlib.contextmanager
def prometheus(folder, port, exporter):
    """A Prometheus server that scrapes one host and itself."""
    program = shutil.which("prometheus")
    assert program, "prometheus is missing: it is in Debian's package prometheus, which 'make test-tools' installs"
    (folder / "prometheus.yml").write_text(
        "scrape_configs:\n"
        "- job_name: node\n  scrape_interval: 1s\n  scrape_timeout: 1s\n  static_configs:\n"
        f"  - targets: ['127.0.0.1:{exporter.server_port}']\n    labels: {{host: 'Node1.site.example:9100'}}\n"
        f"- job_name: itself\n  static_configs:\n  - targets: ['127.0.0.1:{port}']\n    labels: {{host: head}}\n"
    )
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [
                program,
                f"--config.file={folder}/prometheus.yml",
                f"--storage.tsdb.path={folder}/data",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stderr=log,
        )
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def test_a_real_prometheus_gives_what_node_exporter_says_also_after_it_was_away(tmp_path, exporter):
    store = Store(3600.0, 5.0)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = {
        "url": f"http://127.0.0.1:{port}",
        "interval_s": 0.5,
        "selector": 'job="node"',
        "label": "host",
    }
    with followed("prometheus", options, store):
        time.sleep(1)  # nobody answers yet
        with prometheus(tmp_path, port, exporter):
            eventually(lambda: store.last() and store.last()[0].metrics.keys() == QUERIES.keys())
    (sample,) = store.last()
    assert (sample.node, sample.kind) == ("node1", "host")
    assert time.time() - sample.time < PATIENCE_S
    rates = {name: sample.metrics.pop(name) for name in QUERIES if name.startswith(("cpu", "psi"))}
    # of counters that it has seen for seconds alone, Prometheus gives less than a minute's rate
    waiting = rates.pop("psi_cpu")
    assert 0 < waiting <= 0.6
    assert 1 - rates.pop("cpu") == pytest.approx(waiting / 2, rel=0.1)
    assert rates == pytest.approx(
        {"psi_memory": waiting / 2, "psi_memory_full": waiting / 2, "psi_io": waiting}, rel=0.1
    )
    assert sample.metrics == {
        "mem_total_kb": 65536000.0,
        "mem_available_kb": 16384000.0,
        "mem_active_kb": 1024.0,
        "swap_used_kb": 1024.0,
        "load1": 3.5,
        "ecc_corrected": 7.0,
        "ecc_corrected_per_h": 0.0,
        "ecc_uncorrected": 1.0,
        "temperature_c": 71.0,
        "fan_rpm": 1200.0,
    }


# --- LDMS

LDMS = ["#Time", "ProducerName", "MemTotal", "MemAvailable", "Active"]


def append(path, *rows):
    with path.open("a", newline="") as file:
        csv.writer(file).writerows(rows)


def metrics(available):
    return {"mem_total_kb": 1000.0, "mem_available_kb": available, "mem_active_kb": 7.0}


def test_an_ldms_file_is_followed_from_its_end_on(tmp_path):
    path, store = tmp_path / "meminfo.csv", Store(3600.0, 5.0)
    append(path, LDMS, [1.0, "old", 1000, 500, 7])
    with followed("ldms", {"path": str(path)}, store):
        time.sleep(0.5)
        append(path, [2.0, "h1.site", 1000, 250, 7])
        eventually(store.last)
    assert store.last() == [Sample("h1", "host", 2.0, metrics(250.0))]


def test_an_ldms_file_may_come_late_be_written_in_pieces_hold_rubbish_and_be_begun_anew(tmp_path):
    path, store = tmp_path / "meminfo.csv", Store(3600.0, 5.0)
    with followed("ldms", {"path": str(path)}, store):
        time.sleep(0.3)
        append(path, LDMS, ["x", "h1", "no", "number"], [1.0, "h1", 1000])
        with path.open("a") as file:
            file.write("3.0,h1,1000,4")
            file.flush()
            time.sleep(0.5)
            assert store.last() == []
            file.write("00,7\n")
        eventually(store.last)
        assert store.last() == [Sample("h1", "host", 3.0, metrics(400.0))]
        aside = tmp_path / "next"
        append(aside, LDMS)
        with aside.open("ab") as file:
            file.write(b'3.5,h2\xff\xfe,1000,300,7\n3.6,"h2,' + b"x" * 200_000 + b"\n")  # torn; too long for CSV
        append(aside, [4.0, "h2", 1000, 300, 7])
        aside.replace(path)
        eventually(lambda: len(store.last()) == 2)
    assert store.last()[1] == Sample("h2", "host", 4.0, metrics(300.0))


# --- settings


@pytest.mark.parametrize(
    ("kind", "options", "complaint"),
    [
        ("telepathy", {}, "installed are agents, ldms, prometheus"),
        ("agents", {"port": 1}, "unknown option 'port'; known are none"),
        ("prometheus", {}, "give it as http://"),
        ("prometheus", {"uri": "x"}, "unknown option 'uri'"),
        ("prometheus", {"url": "http://x", "interval_s": 0}, "give seconds from 0.1"),
        ("ldms", {"path": "meminfo.csv"}, "give the whole path"),
        ("ldms", {"path": 3}, "str is needed"),
    ],
)
def test_a_source_that_is_set_up_wrongly_is_refused_before_it_is_opened(kind, options, complaint):
    with pytest.raises(ValueError, match=complaint):
        check_source(kind, options)
    with pytest.raises(ValueError, match=complaint):
        open_source(kind, options, context(Store(1.0, 1.0)))
