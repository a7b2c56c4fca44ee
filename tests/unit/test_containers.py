"""The testbed's hosts as containers, where no real one can be made to misbehave."""

import subprocess

import pytest

from failavoid.shared import containers


@pytest.fixture
def testbed(tmp_path):
    """Two hosts' folders, and none of anybody's processes."""
    testbed = containers.Testbed(
        base=tmp_path / "testbed",
        store=tmp_path / "sysimage",
        bridge="failavoidnone0",
        address="10.99.0.254",
        prefix=16,
        group="failavoid-none",
    )
    for name in ("host01", "host02", "host03"):
        testbed.folder(name).mkdir(parents=True)
    return testbed


def test_a_host_that_does_not_end_is_named_and_keeps_no_other_from_being_removed(testbed, monkeypatch):
    def stop(testbed, name):
        if name == "host02":
            raise containers.ContainerError("host host02 does not end (process 4711, killed 10 s ago)")
        testbed.folder(name).rmdir()
        return True

    monkeypatch.setattr(containers, "stop", stop)
    with pytest.raises(containers.ContainerError, match="host02 does not end") as caught:
        containers.clean(testbed)
    assert "try again" in str(caught.value)
    assert [path.name for path in (testbed.base / "hosts").iterdir()] == ["host02"]
    monkeypatch.undo()
    assert containers.clean(testbed) == ["host host02", str(testbed.base)]
    assert not testbed.base.exists()


def test_a_host_whose_container_survives_its_killing_keeps_its_files(testbed, monkeypatch):
    folder = testbed.folder("host01")
    with subprocess.Popen(["sleep", "60"]) as survivor:
        try:
            monkeypatch.setattr(containers, "_nspawns", lambda folder: [survivor.pid])
            monkeypatch.setattr(containers, "wait_for", lambda condition, patience_s: condition())
            with pytest.raises(containers.ContainerError, match=rf"host01 does not end \(process {survivor.pid}"):
                containers.stop(testbed, "host01")
        finally:
            survivor.kill()
    assert folder.exists()
