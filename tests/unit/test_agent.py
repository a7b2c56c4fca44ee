"""What the agent reads, how it paces itself, and that it can't be brought down by what it needs."""

import functools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from failavoid.agent import sensors
from failavoid.agent.ipmi import parse
from failavoid.agent.sampler import PAGE_KB, Sampler
from failavoid.agent.sensors import Sensors
from failavoid.agent.settings import SettingsError, load
from failavoid.shared.messages import METRICS
from failavoid.shared.samples import Decoder
from failavoid.shared.tokens import mint

SECRET = b"s" * 48
PROJECT = Path(__file__).parents[2]
GOOD = {
    "node": "host01",
    "kind": "host",
    "token": mint(SECRET, "host", "host01"),
    "monitor": "127.0.0.1:7411",
    "controller": "http://127.0.0.1:7413",
}


def write(tmp_path, **changes):
    path = tmp_path / "agent.json"
    path.write_text(json.dumps({**GOOD, **changes}))
    return str(path)


# --- settings


def test_settings_are_read(tmp_path):
    settings = load(write(tmp_path, metrics=["cpu"], job_user=[1000, 100]))
    assert settings.job_user == (1000, 100)
    assert settings.node == "host01"
    assert settings.monitor == ("127.0.0.1", 7411)
    assert settings.interval_s == 1.0
    assert settings.metrics == {"cpu"}
    assert settings.authority == ""
    assert load(write(tmp_path, authority="/etc/failavoid/authority.pem")).authority == "/etc/failavoid/authority.pem"


def test_guests_sample_less_often_by_default(tmp_path):
    token = mint(SECRET, "guest", "guest-1", "uuid")
    assert load(write(tmp_path, node="guest-1", kind="guest", token=token)).interval_s == 5.0


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"kind": "switch"}, "'kind' is 'switch'"),
        ({"monitor": "10.77.0.1"}, "'monitor' is '10.77.0.1'; give it as ADDRESS:PORT"),
        ({"monitor": "a:99999"}, "'monitor'"),
        ({"interval_s": 0}, "'interval_s' is 0"),
        ({"interval_s": "1"}, "'interval_s'"),
        ({"token": ""}, "'token' is missing"),
        ({"token": mint(SECRET, "host", "host02")}, "'token' is not one of host host01"),
        ({"metrics": "cpu"}, "'metrics'"),
        ({"job_user": 1000}, "'job_user'"),
        ({"job_user": [0, 1000]}, "'job_user'"),
        ({"intervall": 1}, "unknown setting 'intervall'"),
    ],
)
def test_bad_settings_are_refused_by_name(tmp_path, changes, complaint):
    with pytest.raises(SettingsError, match=complaint):
        load(write(tmp_path, **changes))


def test_settings_that_are_not_there_or_no_json_are_named(tmp_path):
    with pytest.raises(SettingsError, match=r"none\.json: cannot be read"):
        load(str(tmp_path / "none.json"))
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(SettingsError, match=r"bad\.json: is not JSON"):
        load(str(tmp_path / "bad.json"))


# --- sampling


@pytest.fixture
def fake_proc(tmp_path):
    """A host's /proc with known figures."""
    proc = tmp_path / "proc"
    proc.mkdir()
    (proc / "meminfo").write_text(
        "MemTotal:        2097152 kB\nMemFree:          100000 kB\nMemAvailable:     524288 kB\n"
        "Active:           300000 kB\nActive(anon):      12345 kB\nSwapTotal:         10000 kB\n"
        "SwapFree:           4000 kB\nHugePages_Total:       0\n"
    )
    (proc / "loadavg").write_text("1.25 0.50 0.10 2/300 4242\n")
    tick(proc, (100, 800), (50, 400), (50, 400))
    return proc


def tick(proc, *cores):
    lines = [
        f"cpu{'' if number == 0 else number - 1} {used} 0 0 {idle} 0 0 0 0 0 0"
        for number, (used, idle) in enumerate(cores)
    ]
    (proc / "stat").write_text("\n".join([*lines, "intr 12345 " + "0 " * 5000, "ctxt 1", ""]))


def test_memory_and_load_are_read_as_the_kernel_says_them(fake_proc, tmp_path):
    metrics, _ = Sampler("guest", proc=str(fake_proc), sys="/none").collect()
    assert metrics == {
        "mem_total_kb": 2097152,
        "mem_available_kb": 524288,
        "mem_active_kb": 300000,
        "swap_used_kb": 6000,
        "cpu": 0.0,
        "load1": 1.25,
    }


def test_cpu_use_is_that_between_two_samples(fake_proc, tmp_path):
    sampler = Sampler("guest", proc=str(fake_proc))
    tick(fake_proc, (200, 900), (150, 400), (50, 500))
    metrics, cores = sampler.collect()
    assert metrics["cpu"] == 0.5
    assert cores == [1.0, 0.0]


def test_a_hosts_sample_has_what_the_machine_offers_and_a_guests_all_but_the_guests(tmp_path):
    host, cores = Sampler("host", pids=str(tmp_path)).collect()
    guest, _ = Sampler("guest").collect()
    assert set(host) <= set(METRICS)
    assert {"mem_total_kb", "mem_available_kb", "swap_used_kb", "cpu", "load1", "guests_rss_kb"} <= set(host)
    assert set(guest) == set(host) - {"guests_rss_kb"}
    assert len(cores) == os.cpu_count()


def put(folder, **files):
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(f"{text}\n")


def test_stalls_are_read_as_shares_of_the_last_ten_seconds(fake_proc):
    some = "some avg10=12.50 avg60=1.00 avg300=0.10 total=1234"
    put(fake_proc / "pressure", cpu=some, io=some, memory=f"{some}\nfull avg10=3.00 avg60=0.00 avg300=0.00 total=5")
    metrics, _ = Sampler("guest", proc=str(fake_proc)).collect()
    stalls = {name: value for name, value in metrics.items() if name.startswith("psi")}
    assert stalls == {"psi_cpu": 0.125, "psi_io": 0.125, "psi_memory": 0.125, "psi_memory_full": 0.03}


def test_sensors_and_memory_errors_are_read_from_the_kernel(tmp_path):
    put(tmp_path / "devices/system/edac/mc/mc0", ce_count=3, ue_count=0)
    put(tmp_path / "devices/system/edac/mc/mc1", ce_count=2, ue_count=1)
    put(
        tmp_path / "class/hwmon/hwmon0",
        temp1_input=45000,
        temp1_crit=95000,
        temp2_input=60000,
        temp2_crit=70000,
        fan1_input=4000,
        fan2_input=1500,
        in0_input=1150,
        in0_min=1000,
        in0_max=1200,
        in1_input=5000,
    )
    assert Sensors(str(tmp_path)).read() == {
        "ecc_corrected": 5.0,
        "ecc_corrected_per_h": 0.0,
        "ecc_uncorrected": 1.0,
        "temperature_c": 60.0,
        "temperature_margin_c": 10.0,
        "fan_rpm": 1500.0,
        "voltage_deviation": 0.5,
    }


def test_a_machine_without_sensors_sends_none_and_one_that_loses_one_the_others(tmp_path):
    assert Sensors(str(tmp_path)).read() == {}
    put(tmp_path / "class/hwmon/hwmon0", temp1_input=45000, fan1_input=900)
    sensors = Sensors(str(tmp_path))
    (tmp_path / "class/hwmon/hwmon0/fan1_input").unlink()
    assert sensors.read() == {"temperature_c": 45.0}


def test_memory_errors_are_counted_an_hour(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(sensors, "time", SimpleNamespace(monotonic=lambda: now[0]))
    put(tmp_path / "devices/system/edac/mc/mc0", ce_count=3, ue_count=0)
    found, rates = Sensors(str(tmp_path)), []
    for minute in range(0, 151, 10):  # forty in the half hour after the first
        now[0] = 1000.0 + 60 * minute
        (tmp_path / "devices/system/edac/mc/mc0/ce_count").write_text(str(3 + min(40, max(0, minute - 30) * 4 // 3)))
        rates.append(found.read()["ecc_corrected_per_h"])
    assert rates[3] == 0
    assert rates[6] == 40
    assert rates[-1] == 0  # as many again in no hour since


def test_what_ipmitool_prints_is_understood():
    text = "CPU1 Temp,52,degrees C,ok\nInlet,23,degrees C,ok\nFAN1,5600,RPM,ok\nFAN2,,RPM,ns\nVcore,1.2,Volts,ok\n"
    assert parse(text) == {"temperature_c": 52.0, "fan_rpm": 5600.0}


IPMITOOL = """#!/bin/sh
[ "$*" = "-c sdr list full" ] || exit 2
echo "CPU1 Temp,52,degrees C,ok"
echo "FAN1,5600,RPM,ok"
"""


@pytest.mark.parametrize(("script", "offered"), [(IPMITOOL, True), ("#!/bin/sh\nexit 1\n", False)])
def test_an_agent_sends_what_a_management_controller_says_and_goes_on_without(tmp_path, listener, script, offered):
    """ipmitool is played: there is no management controller to ask."""
    (tmp_path / "ipmitool").write_text(script)
    (tmp_path / "ipmitool").chmod(0o755)
    where = f"127.0.0.1:{listener.getsockname()[1]}"
    path = write(tmp_path, monitor=where, interval_s=0.05, controller="", plugins=["failavoid.agent.ipmi"])
    process = start(path, PATH=f"{tmp_path}:{os.environ['PATH']}")
    decoder, found, deadline = Decoder(functools.partial(mint, SECRET)), {}, time.monotonic() + 20
    try:
        samples = 0
        while time.monotonic() < deadline and samples < 20 and "fan_rpm" not in found:
            found = decoder.decode(listener.recv(65536), time.time()).content()[0]
            samples += not offered
    finally:
        status, errors = stop(process)
    assert status == 0
    assert found["mem_total_kb"] > 0
    if offered:
        assert (found["temperature_c"], found["fan_rpm"], errors) == (52.0, 5600.0, "")
    else:
        assert "fan_rpm" not in found
        assert errors.count("ipmitool gives no answer") == 1


def test_a_plugin_offers_more_metrics(fake_proc):
    class Plugin:
        def read(self):
            return {"temperature_c": 33.0}

    metrics, _ = Sampler("guest", proc=str(fake_proc), sys="/none", plugins=[Plugin()]).collect()
    assert metrics["temperature_c"] == 33.0


def test_a_plugin_that_is_not_there_ends_the_agent_with_one_sentence(tmp_path):
    process = start(write(tmp_path, plugins=["no.such.module"]))
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 1
    assert errors.count("\n") == 1
    assert "'plugins': 'no.such.module' is no plug-in" in errors


def test_only_the_metrics_asked_for_are_sent(fake_proc):
    metrics, _ = Sampler("guest", frozenset({"cpu", "load1"}), proc=str(fake_proc)).collect()
    assert set(metrics) == {"cpu", "load1"}


def test_the_guests_resident_memory_follows_guests_as_they_come_and_go(fake_proc, tmp_path):
    pids = tmp_path / "qemu"
    sampler = Sampler("host", proc=str(fake_proc), pids=str(pids))

    def resident():
        return sampler.collect()[0]["guests_rss_kb"]

    assert resident() == 0  # no libvirt
    pids.mkdir()
    (pids / "driver.pid").write_text("1\n")
    for pid, pages in ((100, 1000), (101, 500)):
        (fake_proc / str(pid)).mkdir()
        (fake_proc / str(pid) / "statm").write_text(f"9999 {pages} 10 1 0 100 0\n")
        (pids / f"guest-{pid}.pid").write_text(f"{pid}\n")
    assert resident() == 1500 * PAGE_KB
    (fake_proc / "101" / "statm").unlink()
    assert resident() == 1000 * PAGE_KB
    (pids / "guest-100.pid").unlink()
    assert resident() == 0


def test_the_memory_of_a_process_that_runs_is_counted(tmp_path):
    process = subprocess.Popen(["sleep", "60"])
    try:
        (tmp_path / "guest-1.pid").write_text(str(process.pid))
        assert Sampler("host", pids=str(tmp_path)).collect()[0]["guests_rss_kb"] > 0
    finally:
        process.kill()
        process.wait()


# --- the process


def start(path, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", "failavoid.agent", "--settings", path],
        cwd=PROJECT,
        env={**os.environ, **environment},
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def listener():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))
        udp.settimeout(20)
        yield udp


def stop(process):
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=20)
    return process.returncode, errors


def test_a_running_agent_sends_samples_that_can_be_checked_and_ends_on_sigterm(tmp_path, listener):
    decoder = Decoder(functools.partial(mint, SECRET))
    process = start(write(tmp_path, monitor=f"127.0.0.1:{listener.getsockname()[1]}", interval_s=0.1, controller=""))
    try:
        received = [decoder.decode(listener.recv(65536), time.time()) for _ in range(4)]
    finally:
        status, errors = stop(process)
    assert (status, errors) == (0, "")
    assert [sample.time for sample in received] == sorted(sample.time for sample in received)
    metrics, cores = received[-1].content()
    assert metrics["mem_total_kb"] > 0
    assert len(cores) == os.cpu_count()


def test_an_agent_outlives_the_absence_of_its_monitor(tmp_path, listener):
    port = listener.getsockname()[1]
    listener.close()
    process = start(write(tmp_path, monitor=f"127.0.0.1:{port}", interval_s=0.05))
    try:
        time.sleep(0.5)  # samples go nowhere meanwhile
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as back:
            back.bind(("127.0.0.1", port))
            back.settimeout(20)
            assert back.recv(65536).startswith(b"FA1 host.host01.0 ")
    finally:
        assert stop(process)[0] == 0


def test_a_monitor_whose_name_is_unknown_is_said_once(tmp_path):
    process = start(write(tmp_path, monitor="no-such-name.invalid:7411", interval_s=0.05, controller=""))
    assert "samples cannot be sent to no-such-name.invalid:7411" in process.stderr.readline()
    time.sleep(0.3)
    assert stop(process) == (0, "")


def test_an_agent_tells_systemd_that_it_is_ready(tmp_path, listener):
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(path))
        systemd.settimeout(20)
        process = start(write(tmp_path), NOTIFY_SOCKET=str(path))
        try:
            assert systemd.recv(100) == b"READY=1"
        finally:
            stop(process)


def test_bad_settings_end_the_agent_with_one_sentence(tmp_path):
    process = start(write(tmp_path, kind="switch"))
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 1
    assert errors.count("\n") == 1
    assert "'kind' is 'switch'; it must be host or guest" in errors


def test_the_agent_needs_no_heavy_modules(tmp_path):
    """It starts on emulated CPUs: what it imports is most of its start."""
    code = (
        "import sys, failavoid.agent.__main__; "
        "print(*sorted({'argparse', 'dataclasses', 'inspect', 'asyncio', 'psutil', 'http',"
        " 'logging', 'subprocess', 'threading', 'pathlib'} & set(sys.modules)))"
    )
    loaded = subprocess.run([sys.executable, "-S", "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == []
