"""The module that keeps the site's authority: what it issues, and where it installs what."""

import pwd
import shutil
import ssl

import pytest
from site_certificates import Authority, certificates


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("site") / "ca")


def names(certificate):
    return ssl._ssl._test_decode_cert(str(certificate))["subjectAltName"]


def test_a_certificate_carries_the_hosts_name_and_all_its_addresses(authority):
    certificate, key = authority.issue("head01", "10.0.0.1", "127.0.0.1", "::1", "localhost")
    assert set(names(certificate)) == {
        ("DNS", "head01"),
        ("DNS", "localhost"),
        ("IP Address", "10.0.0.1"),
        ("IP Address", "127.0.0.1"),
        ("IP Address", "0:0:0:0:0:0:0:1"),
    }
    assert key.stat().st_mode & 0o777 == 0o600


def test_a_certificate_stays_until_the_hosts_addresses_change(authority):
    assert certificates.issue(authority.folder, "host01", ["10.0.0.1"])
    assert not certificates.issue(authority.folder, "host01", ["10.0.0.1"])
    assert certificates.issue(authority.folder, "host01", ["10.0.0.1", "10.1.0.1"])


def test_the_services_key_is_their_users_alone_and_the_authority_is_everyones(tmp_path, monkeypatch):
    monkeypatch.setattr(certificates, "FAILAVOID", tmp_path)
    files = {"authority": "A", "certificate": "C", "key": "K"}
    wanted = certificates.places(files, qemu=False, group="", service_user="failavoid")
    services = {path.relative_to(tmp_path): rest for path, *rest in wanted if tmp_path in path.parents}
    assert {str(path): rest for path, rest in services.items()} == {
        "authority.pem": ["A", "root", "root", 0o644],
        "tls/certificate.pem": ["C", "root", "root", 0o644],
        "tls/key.pem": ["K", "failavoid", "root", 0o400],
    }
    hosts = [path for path, *_ in certificates.places(files, qemu=True, group="", service_user="")]
    assert tmp_path / "authority.pem" in hosts
    assert tmp_path / "tls/key.pem" not in hosts


def test_a_file_is_installed_once_and_again_when_it_is_not_as_it_should_be(tmp_path):
    nobody = pwd.getpwnam("nobody").pw_name
    place = (tmp_path / "tls/key.pem", "K", nobody, "root", 0o400)
    assert certificates.install(*place, check=True)
    assert not place[0].exists()
    assert certificates.install(*place, check=False)
    assert (place[0].owner(), place[0].stat().st_mode & 0o777) == (nobody, 0o400)
    assert not certificates.install(*place, check=False)
    shutil.chown(place[0], "root")
    assert certificates.install(*place, check=False)
