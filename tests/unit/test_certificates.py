"""The module that keeps the site's authority: what it issues, and where it installs what."""

import pwd
import shutil
import ssl
import time

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


def test_a_certificate_is_made_anew_before_it_ends(authority, monkeypatch):
    certificates.issue(authority.folder, "host02", ["10.0.0.2"])
    monkeypatch.setattr(certificates, "RENEW_BEFORE_S", (certificates.DAYS - 1) * 86400)
    assert not certificates.issue(authority.folder, "host02", ["10.0.0.2"])
    monkeypatch.setattr(certificates, "RENEW_BEFORE_S", (certificates.DAYS + 1) * 86400)
    assert certificates.issue(authority.folder, "host02", ["10.0.0.2"])


def test_a_certificate_is_made_anew_when_the_authority_is_another(tmp_path):
    first, other = Authority(tmp_path / "ca"), Authority(tmp_path / "other")
    first.issue("host01", "10.0.0.1")
    for name in ("ca-cert.pem", "ca-key.pem"):
        shutil.copy2(other.folder / name, first.folder / name)
    assert certificates.issue(first.folder, "host01", ["10.0.0.1"])
    assert not certificates.issue(first.folder, "host01", ["10.0.0.1"])


def test_a_pair_that_was_cut_short_is_made_anew(authority, monkeypatch):
    certificates.issue(authority.folder, "host03", ["10.0.0.3"])

    def fail(*_):
        raise certificates.CertificateError("the disk is full")

    with monkeypatch.context() as cut:
        cut.setattr(certificates, "certtool", fail)
        with pytest.raises(certificates.CertificateError):
            certificates.issue(authority.folder, "host03", ["10.0.0.30"])
    assert certificates.issue(authority.folder, "host03", ["10.0.0.3"])


def test_an_authority_of_its_own_is_renewed_with_its_key_and_what_it_has_signed_stays_good(tmp_path, monkeypatch):
    authority = Authority(tmp_path / "ca")
    certificate, _ = authority.issue("host01", "10.0.0.1")
    before, key = authority.certificate.read_text(), (authority.folder / "ca-key.pem").read_text()
    assert not certificates.authority(authority.folder)
    with monkeypatch.context() as years_later:
        years_later.setattr(certificates, "RENEW_BEFORE_S", (certificates.DAYS + 1) * 86400)
        assert certificates.authority(authority.folder)
    assert authority.certificate.read_text() != before
    assert (authority.folder / "ca-key.pem").read_text() == key
    certificates.certtool("--verify", f"--load-ca-certificate={authority.certificate}", f"--infile={certificate}")
    assert certificates.trouble_with(authority.certificate) == ""


def test_an_authority_that_the_site_has_brought_is_left_to_the_site_and_its_end_is_announced(tmp_path, monkeypatch):
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(certificates, "OWN_NAME", "Site CA")
        brought = Authority(tmp_path / "ca")
    before = brought.certificate.read_text()
    monkeypatch.setattr(certificates, "RENEW_BEFORE_S", (certificates.DAYS + 1) * 86400)
    assert not certificates.authority(brought.folder)
    assert brought.certificate.read_text() == before
    assert "put a newer ca-cert.pem and ca-key.pem there" in certificates.trouble_with(brought.certificate)


def test_hosts_whose_clocks_are_behind_take_a_new_certificate(authority):
    certificate, _ = authority.issue("host04", "10.0.0.4")
    for file in (certificate, authority.certificate):
        begin = ssl.cert_time_to_seconds(ssl._ssl._test_decode_cert(str(file))["notBefore"])
        assert begin < time.time() - 3600


def test_nobody_but_root_sees_the_authoritys_folder(tmp_path):
    folder = tmp_path / "ca"
    folder.mkdir(mode=0o755)
    assert Authority(folder).folder.stat().st_mode & 0o777 == 0o700


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
