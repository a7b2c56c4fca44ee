"""What the head has published, and that nodes can boot it."""

import json

testinfra_hosts = ["ansible://head"]
STORE = "/var/lib/failavoid/sysimage"


def manifest(host):
    return json.loads(host.file(f"{STORE}/current/manifest.json").content_string)


def test_the_current_image_is_complete(host):
    image = manifest(host)
    assert set(image["classes"]) >= {"host", "head", "guest"}
    for name in ("kernel", "initrd"):
        assert host.file(f"{STORE}/{image[name]}").size > 0
    assert host.file(f"{STORE}/roots/{image['root']}/usr/bin/python3").exists


def test_the_image_holds_no_secret(host):
    secret = host.file("/etc/failavoid/secret").content_string.strip()
    assert secret
    image = f"{STORE}/images/{manifest(host)['digest']}"
    assert host.run(f"grep -rlF -- '{secret}' {image}").rc == 1  # 2 were an image that can't be read


def test_the_image_is_exported(host):
    address = host.ansible.get_variables()["ansible_host"]  # the head itself is no client by another
    assert STORE in host.check_output(f"showmount --no-headers --exports {address}")
