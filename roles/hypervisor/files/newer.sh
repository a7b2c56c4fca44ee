#!/bin/sh
# Name what libvirt has not taken up: a run of Ansible that was interrupted has written it and restarted nothing. The handlers
# restart the socket, so it is younger than all that libvirt is started from.
set -eu
systemctl --quiet is-active libvirtd-tls.socket || {
  echo libvirtd-tls.socket
  exit 0
}
since=$(systemctl show --property=ActiveEnterTimestamp --value --timestamp=us+utc libvirtd-tls.socket)
for file in /etc/libvirt/qemu.conf /etc/systemd/system/libvirtd-tls.socket.d/failavoid.conf /etc/pki/CA/cacert.pem \
  /etc/pki/libvirt/*.pem /etc/pki/libvirt/private/*.pem /etc/pki/qemu/*.pem; do
  [ ! -e "$file" ] || find "$file" -maxdepth 0 -newermt "$since"
done
