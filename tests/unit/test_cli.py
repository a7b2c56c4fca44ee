"""The command line, as a program: real processes that talk HTTP to a resource manager; mpirun is played by a script."""

import dataclasses
import json
import os
import pwd
import signal
import socket
import stat
import subprocess
import sys
import threading
import time

import pytest
import uvicorn
from evacuation_world import World
from resource_manager_site import PATIENCE_S, SECRET, SERVICE, Site

from failavoid.cli import api, completion, evacuations, mpi, tables
from failavoid.cli.follower import Follower
from failavoid.cli.run import RunRequest, hosts_for, hugepage_size, kilobytes, seconds, user_key
from failavoid.cli.settings import CliError, CliSettings, load
from failavoid.controller.api import build_app
from failavoid.shared.http import ApiError
from failavoid.shared.messages import Alarm, Evacuation, Event, Evidence, Job, JobRequest, Migration, Step, to_dict
from failavoid.shared.tokens import mint, verify

NOBODY = pwd.getpwnam("nobody")

MPIRUN = """#!/bin/sh
# says what it was given, and does what the program's first word asks for
echo "mpirun $*"
echo "job $FAILAVOID_JOB every $FAILAVOID_EVERY path $PYTHONPATH"
while [ "$1" != program ]; do shift; done
case $2 in
  fail) exit 7 ;;
  hang) trap 'echo ended; exit 143' TERM; echo "hanging"; while :; do sleep 0.1; done ;;
esac
"""


class ServedSite(Site):
    """A site whose resource manager answers on a port of this machine, also after a restart."""

    def serve(self):
        listening = socket.create_server(("127.0.0.1", getattr(self, "port", 0)))
        self.port = listening.getsockname()[1]
        self.server = uvicorn.Server(uvicorn.Config(self.api.app, log_level="warning", timeout_graceful_shutdown=1))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [listening]})
        self.thread.start()

    def stop(self):
        self.server.should_exit = True
        self.thread.join()


@pytest.fixture
def site(tmp_path, monkeypatch):
    site = ServedSite(tmp_path / "site", monkeypatch)
    site.serve()
    yield site
    site.hold.set()
    site.stop()


@pytest.fixture
def environment(site, tmp_path):
    """What the program is run with: an operator's token, a home, an mpirun."""
    for name in ("home", "bin"):
        (tmp_path / name).mkdir()
    script = tmp_path / "bin/mpirun"
    script.write_text(MPIRUN)
    script.chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "FAILAVOID_RESOURCE_MANAGER_URL": f"http://127.0.0.1:{site.port}",
        "FAILAVOID_CONTROLLER_URL": "http://127.0.0.1:1",
        "FAILAVOID_TOKEN": mint(SECRET, "operator", "root"),
    }


def start(environment, *words):
    return subprocess.Popen(
        [sys.executable, "-m", "failavoid.cli.main", *words],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def failavoid(environment, *words):
    process = start(environment, *words)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


# -- looking and acting ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [0, 401, 500, 502, 503, 504])
def test_a_service_that_is_being_restarted_does_not_keep_a_jobs_client_from_hearing_of_its_end(monkeypatch, status):
    job = Job("job-1", JobRequest("ada", 1000, 1000, "key", hosts=1), "running", created=0.0)
    ended = to_dict(dataclasses.replace(job, state="failed", ended=1.0))
    answers = [ApiError(status, "cut off"), ended]

    def answer(*_args):
        said = answers.pop(0)
        if isinstance(said, ApiError):
            raise said
        return said

    monkeypatch.setattr(api, "load", CliSettings)
    monkeypatch.setattr(api, "token", lambda: "token")
    monkeypatch.setattr(api.http, "call", answer)
    heard = threading.Event()
    Follower(job).at_end(heard.set)
    assert heard.wait(PATIENCE_S)


def test_hosts_and_guests_are_shown_a_line_each(site, environment):
    job = site.ready()
    status, out, _ = failavoid(environment, "hosts")
    assert status == 0
    lines = [line.split() for line in out.splitlines()]
    assert ["host1", "allocated", "10.0.0.1", "2048", "MiB", *job.guests[:2], job.id] in lines
    assert ["host3", "free", "10.0.0.3", "2048", "MiB"] in lines
    _, out, _ = failavoid(environment, "guests")
    assert [job.guests[0], "ready", "host1", "10.0.2.1", "256", "MiB", "0", "0", "ada", job.id] in [
        line.split() for line in out.splitlines()
    ]


def test_json_is_the_apis_own_document(site, environment):
    site.ready()
    status, out, _ = failavoid(environment, "jobs", "--json")
    assert status == 0
    assert json.loads(out) == [to_dict(job) for job in site.picture().jobs]


def test_a_job_is_shown_with_its_end(site, environment):
    site.end(site.ready().id, 3, "[boom] it broke")
    _, out, _ = failavoid(environment, "jobs")
    assert "[boom] it broke" in out
    assert " 3 " in out


def test_an_operator_retires_and_restores_a_host(site, environment):
    assert failavoid(environment, "retire", "host4", "--reason", "fan is loud")[0] == 0
    assert (site.host("host4").pool, site.host("host4").reason) == ("defunct", "fan is loud")
    site.until(lambda: site.played("retire.yml"), "not marked")
    assert failavoid(environment, "restore", "host4") == (0, "", "")
    assert site.host("host4").pool == "free"


def test_a_drained_host_is_shown_with_whose_word_it_is(site, environment):
    job = site.ready(hosts=1)
    assert failavoid(environment, "drain", "host1", "--reason", "new fan")[0] == 0
    assert site.job(job.id).state == "ready"
    (line,) = (line for line in failavoid(environment, "hosts")[1].splitlines() if line.startswith("host1"))
    assert line.split()[1] == "allocated"
    assert "drained by operator root" in line
    site.end(job.id)
    assert (site.host("host1").pool, site.host("host1").reason) == ("suspect", "new fan")


def test_differences_with_libvirt_are_told(site, capsys):
    site.running["10.0.0.2"]["u-1"] = {"name": "win95"}
    for _ in range(3):
        site.watch.once()
    tables.differences(to_dict(site.picture())["differences"])
    assert "host2 runs win95, which the resource manager does not know" in capsys.readouterr().out
    tables.differences([])
    assert capsys.readouterr().out == ""


def test_names_are_completed(site, environment, monkeypatch):
    job = site.ready()
    for name in ("FAILAVOID_RESOURCE_MANAGER_URL", "FAILAVOID_CONTROLLER_URL", "FAILAVOID_TOKEN"):
        monkeypatch.setenv(name, environment[name])
    assert completion.hosts("host") == ["host1", "host2", "host3", "host4"]
    assert completion.hosts("host3") == ["host3"]
    assert completion.guests("g000") == job.guests
    assert completion.jobs("") == [job.id]
    site.end(job.id)
    assert completion.jobs("") == []
    assert completion.evacuations("") == []  # the controller does not answer


def test_an_operator_ends_a_job_and_removes_its_guests(site, environment):
    job = site.ready()
    assert failavoid(environment, "end", job.id)[:2] == (0, "failed\n")
    assert site.job(job.id).message == "ended by hand"
    assert failavoid(environment, "remove", job.guests[0])[0] == 0
    assert job.guests[0] not in site.guests()


def test_a_refusal_is_one_line_and_status_3(site, environment):
    job = site.ready()
    status, out, err = failavoid(environment, "retire", "host1")
    assert (status, out) == (3, "")
    assert err == (
        f"failavoid: host1 still has guests of jobs: {', '.join(sorted(job.guests[:2]))}. Evacuate it first\n"
    )
    assert failavoid(environment, "restore", "../jobs")[0] == 3


def test_without_a_token_the_file_is_named_and_the_status_is_4(environment, tmp_path):
    del environment["FAILAVOID_TOKEN"]
    missing = tmp_path / "none"
    status, _, err = failavoid({**environment, "FAILAVOID_TOKEN_FILE": str(missing)}, "hosts")
    assert status == 4
    assert err.startswith(f"failavoid: {missing}: your token can't be read (No such file or directory).")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("token", ["x.y.z", mint(b"o" * 48, "operator", "root"), mint(SECRET, "reader", "me")])
def test_a_token_that_does_not_do_is_status_4(environment, token):
    assert failavoid({**environment, "FAILAVOID_TOKEN": token}, "retire", "host1")[0] == 4


def test_a_service_that_does_not_answer_is_named_and_the_status_is_5(environment):
    status, _, err = failavoid(environment, "evacuate", "host1")
    assert status == 5
    assert err.startswith("failavoid: the controller does not answer at http://127.0.0.1:1 (")
    assert len(err.splitlines()) == 1


def test_wrong_words_are_status_2(environment):
    assert failavoid(environment, "frobnicate")[0] == 2
    assert failavoid(environment, "run", "--guests-per-host", "0", "program")[0] == 2


def test_who_may_read_the_secret_can_make_tokens(environment, tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(SECRET)
    status, out, _ = failavoid(environment, "token", "reader", "grafana", "--secret", str(secret))
    assert status == 0
    assert verify(SECRET, out.strip()).role == "reader"
    status, _, err = failavoid(environment, "token", "king", "me", "--secret", str(secret))
    assert status == 2
    assert "unknown role 'king'" in err
    assert failavoid(environment, "token", "reader", "me", "--secret", str(tmp_path / "none"))[0] == 4


def test_no_command_loads_what_it_does_not_need(environment):
    code = "import sys, failavoid.cli.main; print(*{'httpx', 'fastapi', 'yaml', 'failavoid.services'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == ""


def test_settings_come_from_the_file_and_the_environment(tmp_path, monkeypatch):
    path = tmp_path / "cli.yml"
    path.write_text("controller: https://head:7413\nmpi_network: 10.0.0.0/8\n")
    monkeypatch.setenv("FAILAVOID_MONITOR_URL", "https://other:1/")
    monkeypatch.setenv("FAILAVOID_AUTHORITY", "/home/ada/authority.pem")
    settings = load(path)
    assert (settings.controller, settings.monitor) == ("https://head:7413", "https://other:1")
    assert settings.resource_manager == "https://127.0.0.1:7412"
    assert settings.authority == "/home/ada/authority.pem"
    assert settings.mpi_network == "10.0.0.0/8"
    monkeypatch.setenv("FAILAVOID_MONITOR_URL", "http://head:7411")
    with pytest.raises(CliError, match=r"give it as https://.*or FAILAVOID_MONITOR_URL.*in the clear"):
        load(path)
    monkeypatch.delenv("FAILAVOID_MONITOR_URL")
    path.write_text("controler: x\n")
    with pytest.raises(CliError, match="unknown field 'controler'"):
        load(path)


def test_the_story_of_an_evacuation_is_told(capsys):
    evidence = Evidence(0.81, 0.33, 0.01, 48.0, 5.0)
    evacuation = Evacuation(
        "e-1",
        "host2",
        "job-1",
        "RETIRED",
        alarm=Alarm("a-1", 100.0, "host2", "job-1", "robust", "unavailable", 0.81, evidence),
        steps=[Step("leased", 100.5, 100.75, "host5"), Step("retired", 104.0)],
        migrations=[
            Migration("g0003", "host2", "host5", [1], 0, "moved", 2.5, 40, 2**28, pin_verified=True),
            Migration("g0004", "host2", "host5", [0], 0, "failed", error="[no] memory"),
        ],
    )
    tables.story(to_dict(evacuation))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["e-1:", "host", "host2,", "job", "job-1,", "RETIRED"] in lines
    assert any({"robust", "81.0%,", "33.0%,", "48.0"} <= set(line) for line in lines)
    assert ["leased", "0.50", "0.75", "host5"] in lines
    assert ["retired", "4.00"] in lines
    assert ["g0003", "host2", "host5", "moved", "2.50", "40", "256", "1", "yes"] in lines
    assert ["g0004", "host2", "host5", "failed", "0", "[no]", "memory"] in lines


# -- failavoid run -----------------------------------------------------------------------------------------------


@pytest.fixture
def job_environment(environment, tmp_path):
    """The same for an ordinary user, whose home is a folder of the test's."""
    folder = tmp_path / "home"
    os.chown(folder, NOBODY.pw_uid, NOBODY.pw_gid)
    for parent in (tmp_path, *tmp_path.parents[:3]):
        parent.chmod(parent.stat().st_mode | stat.S_IXOTH | stat.S_IROTH)
    return {**environment, "FAILAVOID_TOKEN": mint(SECRET, "user", "nobody"), "TEST_HOME": str(folder)}


# as nobody, whose home of the password file is none
AS_NOBODY = """
import os, pwd, sys
user = pwd.getpwnam("nobody")
home = os.environ["TEST_HOME"]
os.setgid(user.pw_gid), os.setuid(user.pw_uid)
import failavoid.cli.settings as settings
import failavoid.cli.run as run
run.user = lambda: pwd.struct_passwd((*user[:5], home, user.pw_shell))
from failavoid.cli.main import app
app()
"""


def start_run(environment, *words):
    process = subprocess.Popen(
        [sys.executable, "-c", AS_NOBODY, "run", *words],
        env=environment,
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    return process


def run(environment, *words):
    process = start_run(environment, *words)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_a_program_runs_in_guests_of_its_own_and_its_hosts_are_free_afterwards(site, job_environment, tmp_path):
    status, out, err = run(
        job_environment,
        *[
            "--hosts",
            "2",
            "--guests-per-host",
            "2",
            "--every",
            "3",
            "--job-name",
            "wave",
            "--",
            "program",
            "--hosts",
            "9",
        ],
    )
    assert status == 0, err
    job = site.job("wave-1")
    assert (job.state, job.exit_status, job.command) == ("completed", 0, ["program", "--hosts", "9"])
    assert set(site.pools().values()) == {"free"}
    assert "job wave-1 every 3 path" in out
    assert out.splitlines()[0].endswith("program --hosts 9")
    assert "-n 4 " in out
    assert err.splitlines() == [
        "failavoid: job wave-1: waiting for 4 guests on 2 hosts",
        f"failavoid: job wave-1: program --hosts 9 on {' '.join(job.guests)}",
    ]
    folder = tmp_path / "home/.failavoid/jobs/wave-1"
    known = [line.split()[0] for line in (folder / "known_hosts").read_text().splitlines()]
    assert known == [f"10.0.2.{n},{name}" for n, name in enumerate(job.guests, 1)]
    assert (folder / "hosts").read_text() == "".join(f"10.0.2.{n} slots=1\n" for n in (1, 2, 3, 4))
    guest = site.played("launch.yml")[0]["launch_identities"][job.guests[0]]
    assert guest["authorized_keys"] == [(tmp_path / "home/.ssh/failavoid.pub").read_text().strip()]


def test_the_programs_exit_status_is_returned(site, job_environment):
    status, _, _ = run(job_environment, "program", "fail")
    assert status == 7
    assert (site.job("job-1").state, site.job("job-1").exit_status) == ("failed", 7)


def test_a_key_is_made_once(job_environment, tmp_path):
    run(job_environment, "program")
    key = (tmp_path / "home/.ssh/failavoid").read_text()
    assert (tmp_path / "home/.ssh/failavoid").stat().st_mode & 0o077 == 0
    run(job_environment, "program")
    assert (tmp_path / "home/.ssh/failavoid").read_text() == key


def test_a_job_without_room_says_so_and_starts_nothing(job_environment):
    status, out, err = run(job_environment, "--hosts", "9", "program")
    assert (status, out) == (3, "")
    assert "9 hosts with 256 MiB for guests are asked for; of 4 hosts 4 are free" in err


def test_guests_that_do_not_come_up_are_told_with_the_reason(site, job_environment):
    site.fail["launch.yml"] = "host1: guest g0001: Kernel panic"
    status, _, err = run(job_environment, "program")
    assert status == 1
    assert err.splitlines()[-1].startswith("failavoid: job job-1 could not be started: its guests could not be started")
    assert "Kernel panic" in err


def until_it_hangs(process):
    for line in process.stdout:
        if "hanging" in line:
            return
    pytest.fail(f"the program did not start: {process.stderr.read()}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_job_and_its_program(site, job_environment, number):
    process = start_run(job_environment, "program", "hang")
    until_it_hangs(process)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out.strip() == "ended"
    assert "job job-1: ended by its user" in err
    assert (site.job("job-1").state, site.job("job-1").message) == ("failed", "ended by its user")
    assert set(site.pools().values()) == {"free"}


def test_a_signal_while_guests_boot_ends_the_job(site, job_environment):
    site.hold.clear()
    process = start_run(job_environment, "program")
    assert "waiting for 1 guests" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    site.hold.set()
    site.until(lambda: set(site.pools().values()) == {"free"}, "hosts are not free")


def test_a_job_that_lost_a_guest_ends_with_a_word_and_a_status_of_its_own(site, job_environment):
    process = start_run(job_environment, "program", "hang")
    until_it_hangs(process)
    site.running["10.0.0.1"].clear()
    site.watch.once()
    site.watch.once()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75
    assert err.splitlines()[-1] == "failavoid: job job-1: guest g0001 was lost on host host1"
    assert set(site.pools().values()) == {"free"}


def test_a_job_can_be_ended_from_elsewhere(site, environment, job_environment):
    process = start_run(job_environment, "program", "hang")
    until_it_hangs(process)
    assert failavoid(environment, "end", "job-1", "--message", "maintenance")[0] == 0
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "job job-1: maintenance" in err


def test_a_resource_manager_that_is_restarted_meanwhile_is_waited_for(site, job_environment):
    process = start_run(job_environment, "program", "hang")
    until_it_hangs(process)
    site.stop()
    time.sleep(1.5)  # longer than between two looks of the program's
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "ended\n"
    site.start()
    site.serve()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert site.job("job-1").message == "ended by its user"


def test_a_client_that_is_killed_takes_its_program_along_and_its_job_is_ended(site, job_environment):
    process = start_run(job_environment, "program", "hang")
    until_it_hangs(process)
    process.kill()
    assert process.stdout.readline() == "ended\n"  # mpirun was told to end
    process.communicate(timeout=60)
    site.settings.silence_s = 0.0
    site.until(lambda: site.manager.end_silent_jobs() or site.job("job-1").ended, "the job was not ended")
    assert "its 'failavoid run' was not heard for" in site.job("job-1").message
    site.until(lambda: not site.guests() and not site.running["10.0.0.1"], "where its ranks ran others may run")
    assert set(site.pools().values()) == {"free"}


def test_a_client_can_not_be_stopped_without_being_ended(site, job_environment):
    process = start_run(job_environment, "program", "hang")
    until_it_hangs(process)
    process.send_signal(signal.SIGTSTP)
    process.send_signal(signal.SIGINT)  # a stopped program would not hear it
    process.communicate(timeout=60)
    assert process.returncode == 130


def test_a_signal_that_another_thread_takes_ends_the_wait_for_a_program():
    script = """
import signal, subprocess, sys, threading
from failavoid.cli.interrupts import Interrupts
interrupts = Interrupts()
program = subprocess.Popen(["sleep", "300"])
signal_me = lambda: signal.pthread_kill(threading.get_ident(), signal.SIGINT)
threading.Timer(1.0, signal_me).start()
try:
    interrupts.wait(program)
except KeyboardInterrupt:
    program.kill()
    sys.exit(program.wait())
"""
    done = subprocess.run([sys.executable, "-c", script], timeout=60)
    assert done.returncode == 256 - signal.SIGKILL


def test_a_program_on_hosts_without_guests_uses_the_hosts_own_keys(site, job_environment, tmp_path):
    keys = tmp_path / "host_keys"
    keys.write_text("10.0.0.1 ssh-ed25519 AAA1\n10.0.0.2 ssh-ed25519 AAA2\n10.0.0.9 ssh-ed25519 AAA9\n")
    site.settings.host_keys = str(keys)
    status, _, err = run(job_environment, "--hosts", "2", "--on-hosts", "program")
    assert status == 0, err
    assert "it runs without guests: an alarm leads to a notice and a checkpoint, never to a move" in err
    folder = tmp_path / "home/.failavoid/jobs/job-1"
    assert (folder / "hosts").read_text() == "10.0.0.1 slots=1\n10.0.0.2 slots=1\n"
    assert "IdentityFile" not in (folder / "ssh_config").read_text()
    assert (folder / "known_hosts").read_text() == "10.0.0.1,host1 ssh-ed25519 AAA1\n10.0.0.2,host2 ssh-ed25519 AAA2\n"
    assert site.guests() == {}


def test_root_runs_no_jobs(environment):
    status, _, err = failavoid(environment, "run", "program")
    assert status == 3
    assert "jobs do not run as root" in err


def test_without_mpirun_there_is_one_clear_line(job_environment, tmp_path):
    (tmp_path / "bin/mpirun").unlink()
    status, _, err = run({**job_environment, "PATH": str(tmp_path / "bin")}, "program")
    assert status == 1
    assert err == "failavoid: mpirun is not on this host: jobs are started on the head\n"


@pytest.mark.parametrize(
    ("text", "size"), [("512MiB", 524288), ("2G", 2097152), ("300000k", 300000), (" 1 GiB", 1048576)]
)
def test_sizes_are_read_as_people_write_them(text, size):
    assert kilobytes(text) == size


@pytest.mark.parametrize(("text", "size_kb"), [("2MiB", 2048), ("1G", 1048576), ("none", 0)])
def test_sizes_of_hugepages_are_read_and_none_means_ordinary_pages(text, size_kb):
    assert hugepage_size(text) == size_kb


@pytest.mark.parametrize("text", ["", "12", "MiB", "1.5G", "-1M"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(CliError, match="write it as 512MiB"):
        kilobytes(text)


@pytest.mark.parametrize(
    ("text", "time_s"), [("90s", 90), ("30m", 1800), ("2h", 7200), ("1d", 86400), ("1:30:05", 5405)]
)
def test_durations_are_read_as_people_write_them(text, time_s):
    assert seconds(text) == time_s


@pytest.mark.parametrize("text", ["", "90", "1.5h", "1:75:00", "-1m"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(CliError, match="write it as 90s"):
        seconds(text)


# -- MPI's command line ------------------------------------------------------------------------------------------

KNOWN = "10.0.2.1,g0001 ssh-ed25519 AAA1\n10.0.2.2,g0002 ssh-ed25519 AAA2\n"


def job_of(known_hosts=KNOWN):
    return Job("job-1", JobRequest("ada", 1000, 1000, "k", 1), "ready", ["g0001", "g0002"], known_hosts=known_hosts)


def test_more_ranks_than_guests_share_them(tmp_path):
    command = mpi.prepare(job_of(), 5, tmp_path / "key", tmp_path, tmp_path, CliSettings())
    assert command[1:3] == ["-n", "5"]
    assert (tmp_path / "hosts").read_text() == "10.0.2.1 slots=3\n10.0.2.2 slots=3\n"


def test_each_rank_gets_a_core_of_a_guest_unless_hosts_are_asked_for():
    asked = RunRequest(["p"], 8, 0, 2, "256MiB", "migrate", 1, "job")
    assert hosts_for(asked) == 4
    assert hosts_for(dataclasses.replace(asked, guest_vcpus=4)) == 1
    assert hosts_for(dataclasses.replace(asked, ranks=0)) == 1
    assert hosts_for(dataclasses.replace(asked, hosts=3)) == 3
    assert hosts_for(dataclasses.replace(asked, on_hosts=True)) == 1


def test_a_guest_has_as_many_ranks_as_cores_unless_they_are_counted(tmp_path):
    job = job_of()
    job.request.guest_vcpus = 3
    command = mpi.prepare(job, 0, tmp_path / "key", tmp_path, tmp_path, CliSettings())
    assert command[1:3] == ["-n", "6"]


def test_hosts_whose_keys_nobody_knows_get_no_ranks(tmp_path):
    job = job_of("10.0.0.1,host1 ssh-ed25519 AAA1\n")
    job.resource, job.guests, job.hosts = "hosts", [], ["host1", "host2"]
    with pytest.raises(CliError, match="host keys of host1 host2 are not known"):
        mpi.prepare(job, 0, tmp_path / "key", tmp_path, tmp_path, CliSettings())


def test_mpi_stays_on_the_network_of_the_guests_and_on_tcp(tmp_path):
    command = mpi.mpirun(2, tmp_path, CliSettings(mpi_network="10.77.0.0/16", mpi_arguments=["--tag-output"]))
    text = " ".join(command)
    for words in ("btl tcp,self", "btl_tcp_if_include 10.77.0.0/16", "oob_tcp_if_include 10.77.0.0/16"):
        assert f"--mca {words} " in text
    assert command[-1] == "--tag-output"
    assert "if_include" not in " ".join(mpi.mpirun(2, tmp_path, CliSettings()))


def test_ssh_believes_the_jobs_own_host_keys_alone(tmp_path):
    mpi.prepare(job_of(), 0, tmp_path / "key", tmp_path, tmp_path / "masters", CliSettings())
    shown = subprocess.run(
        ["ssh", "-G", "-F", tmp_path / "ssh_config", "10.0.2.1"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert f"userknownhostsfile {tmp_path}/known_hosts" in shown
    assert "globalknownhostsfile /dev/null" in shown
    assert "stricthostkeychecking true" in shown
    assert "batchmode yes" in shown
    assert f"identityfile {tmp_path}/key" in shown
    assert any(line.startswith(f"controlpath {tmp_path}/masters/") for line in shown)


def test_a_kept_connection_is_never_used_for_another_guest_of_the_same_address(tmp_path):
    paths = []
    for known in (KNOWN, KNOWN.replace("AAA1", "BBB1")):
        config = mpi.ssh_config(mpi.targets(known), tmp_path / "key", tmp_path / "known", tmp_path)
        paths.append([line for line in config.splitlines() if "ControlPath" in line])
    assert paths[0][0] != paths[1][0]
    assert paths[0][1] == paths[1][1]


def test_the_users_python_path_comes_first_and_the_wrapper_is_found():
    assert mpi.environment_of(job_of(), 1, {})["PYTHONPATH"] == mpi.LIBRARY
    assert mpi.environment_of(job_of(), 1, {"PYTHONPATH": "/home/ada/lib"})["PYTHONPATH"] == (
        f"/home/ada/lib:{mpi.LIBRARY}"
    )


def test_what_ranks_need_to_know_is_handed_on(monkeypatch, tmp_path):
    monkeypatch.setattr(mpi, "PRELOADED", tmp_path / "libfailavoid-mpi.so")
    always = ["-x", "FAILAVOID_JOB", "-x", "FAILAVOID_EVERY", "-x", "PYTHONPATH"]
    assert mpi.handed_on({"HOME": "/"}) == [*always, "-x", "PMIX_MCA_gds=hash"]
    assert mpi.handed_on({"FAILAVOID_LIMIT_S": "5", "PMIX_MCA_gds": "ds21"}) == [
        *always,
        *("-x", "FAILAVOID_LIMIT_S"),
        *("-x", "PMIX_MCA_gds"),  # the user's own word
    ]
    mpi.PRELOADED.touch()  # guests have what the head has
    assert mpi.handed_on({})[-2:] == ["-x", f"LD_PRELOAD={mpi.PRELOADED}"]
    assert mpi.handed_on({"LD_PRELOAD": "/lib/own.so"})[-1] == f"LD_PRELOAD={mpi.PRELOADED}:/lib/own.so"


def test_two_runs_at_once_make_one_key(tmp_path):
    threads = [threading.Thread(target=user_key, args=(tmp_path,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    public = subprocess.run(
        ["ssh-keygen", "-y", "-f", tmp_path / ".ssh/failavoid"], capture_output=True, text=True, check=True
    )
    assert public.stdout.split()[:2] == (tmp_path / ".ssh/failavoid.pub").read_text().split()[:2]


def test_the_service_role_is_not_needed_for_looking(site, environment):
    assert failavoid({**environment, "FAILAVOID_TOKEN": SERVICE["Authorization"].split()[1]}, "guests")[0] == 0


# -- evacuations -------------------------------------------------------------------------------------------------

STOPPED = {"mode": "act", "stopped": True, "stopped_by": "ada", "reason": "storm", "since": 100.0}
ALLOWED = {"mode": "act", "stopped": False, "stopped_by": "", "reason": "", "since": None}


def test_that_new_evacuations_are_stopped_or_wait_for_a_person_is_said_loudly():
    assert evacuations.switch(STOPPED).startswith("NEW EVACUATIONS ARE STOPPED by ada since ")
    assert "storm" in evacuations.switch(STOPPED)
    assert "failavoid confirm ID" in evacuations.switch({**ALLOWED, "mode": "recommend"})
    assert "only recorded" in evacuations.switch({**ALLOWED, "mode": "observe"})
    assert evacuations.switch(ALLOWED) == ""


def event(what, **detail):
    return to_dict(Event(7, 100.0, "ada", what, detail))


@pytest.mark.parametrize(
    ("happened", "words"),
    [
        (event("step", evacuation="e-1", step="leased", mark="done", words="host5"), "e-1: leased done: host5"),
        (event("step", evacuation="e-1", step="leased", mark="begun", words=""), "e-1: leased begun"),
        (
            event("request", act="evacuate", subject="rack=r1", reason="fan", outcome="e-1, e-2"),
            "evacuate rack=r1: fan -> e-1, e-2",
        ),
        (event("request", act="stop evacuations", subject="", reason="", outcome=""), "stop evacuations"),
        (event("alarm", alarm="a-1", host="host1", job="job-1", outcome="e-1"), "alarm a-1 of host1, job job-1: e-1"),
        (event("alarm", alarm="a-1", domain="rack=r1", outcome="observed"), "alarm a-1 of rack=r1: observed"),
        (
            event("withdrawal", alarm="a-1", reason="well", outcome="e-1 cancelled"),
            "alarm a-1 withdrawn: well -> e-1 cancelled",
        ),
    ],
)
def test_events_are_a_line_each(happened, words):
    assert evacuations.line(happened).startswith("     7 ")
    assert evacuations.line(happened).endswith(f" ada          {words}")


@pytest.fixture
def controlled(tmp_path, environment):
    """A controller that answers on a port, and the environment to reach it in."""
    world = World(tmp_path / "controller", mode="recommend")
    world.around.cluster.refresh()
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(build_app(world.controller, SECRET), log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    port = listening.getsockname()[1]
    yield world, {**environment, "FAILAVOID_CONTROLLER_URL": f"http://127.0.0.1:{port}"}
    world.alive.clear()
    server.should_exit = True
    thread.join()


def test_an_evacuation_is_planned_confirmed_followed_and_told(controlled):
    world, environment = controlled
    status, out, err = failavoid(environment, "plan", "host1")
    assert status == 0, err
    assert "migrate" in out
    assert json.loads(failavoid(environment, "plan", "host1", "--json")[1])[0]["decision"] == "migrate"
    evacuation = world.until_state(world.alarm(), "LEASED")
    assert "MODE RECOMMEND" in failavoid(environment, "status")[1]
    assert f"failavoid confirm {evacuation.id}" in failavoid(environment, "show", evacuation.id)[1]
    world.ranks_behave()
    assert failavoid(environment, "confirm", evacuation.id)[0] == 0
    world.until_state(evacuation, "RETIRED")
    assert "RETIRED" in failavoid(environment, "evacuations")[1]
    assert failavoid(environment, "cancel", evacuation.id)[0] == 3
    lines = failavoid(environment, "events")[1].splitlines()
    assert any(f"confirm {evacuation.id}" in line for line in lines)
    assert any(f"{evacuation.id}: retired done" in line for line in lines)
    after = json.loads(failavoid(environment, "events", "--json")[1].splitlines()[-1])["number"]
    assert failavoid(environment, "events", "--after", str(after))[1] == ""


def test_the_audit_log_tells_in_one_order_who_changed_what_and_why_at_both_services(site, controlled):
    world, environment = controlled
    job = site.ready()
    failavoid(environment, "drain", "host4", "--reason", "fan is loud")
    evacuation = world.until_state(world.alarm(), "LEASED")
    failavoid(environment, "cancel", evacuation.id, "--reason", "not now")
    status, out, err = failavoid(environment, "audit")
    assert status == 0, err
    lines = out.splitlines()
    assert sorted(lines, key=lambda line: line[:19]) == lines
    assert any("resource_manager operator root        host drained host=host4: fan is loud" in line for line in lines)
    assert any(f"controller       root                 cancel {evacuation.id}: not now" in line for line in lines)
    assert any("user ada" in line and f"job submitted job={job.id} user=ada" in line for line in lines)
    about = failavoid(environment, "audit", "--about", "host4", "--last", "1h")[1].splitlines()
    assert 0 < len(about) < len(lines)
    assert all("host4" in line for line in about)
    documents = [json.loads(line) for line in failavoid(environment, "audit", "--json")[1].splitlines()]
    assert {one["service"] for one in documents} == {"resource_manager", "controller"}
    status, _, err = failavoid({**environment, "FAILAVOID_TOKEN": mint(SECRET, "user", "ada")}, "audit")
    assert (status, "this one is of role user" in err) == (4, True)


def test_new_evacuations_are_stopped_and_allowed_again(controlled):
    world, environment = controlled
    assert failavoid(environment, "stop-evacuations", "--reason", "storm")[0] == 0
    assert "NEW EVACUATIONS ARE STOPPED by root" in failavoid(environment, "status")[1]
    status, _, err = failavoid(environment, "evacuate", "host1")
    assert (status, "storm" in err) == (3, True)
    assert failavoid(environment, "allow-evacuations")[0] == 0
    assert failavoid(environment, "evacuate", "host1")[1].strip() == world.controller.evacuations()[0].id


def test_guests_that_move_are_shown_with_bars_until_the_evacuation_has_ended(monkeypatch, capsys):
    states = iter(["MIGRATING", "VERIFIED", "RETIRED"])

    def answer(_service, _method, path):
        if path.endswith("/progress"):
            return [{"guest": "g0003", "processed": 2**20, "remaining": 3 * 2**20}]
        return {"id": "e-1", "state": next(states)}

    monkeypatch.setattr(evacuations, "call", answer)
    monkeypatch.setattr(evacuations, "LOOK_S", 0.0)
    monkeypatch.setattr(evacuations.sys.stdout, "isatty", lambda: True)
    evacuations.follow_moves({"id": "e-1", "state": "GATHERED"})
    shown = capsys.readouterr().out
    assert "g0003" in shown
    assert "RETIRED" in shown
    assert "1.0/4.2 MB" in shown
