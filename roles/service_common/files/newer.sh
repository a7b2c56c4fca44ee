#!/bin/sh
# Name what a service of the head was to be started from since it was: a run of Ansible that was interrupted has written
# it and restarted nothing. Says nothing of a service that has not been started.
#   newer.sh UNIT SETTINGS
set -eu
since=$(systemctl show --property=ExecMainStartTimestamp --value --timestamp=us+utc "$1")
[ -n "$since" ] || exit 0
for file in "$2" "/etc/systemd/system/$1" /opt/failavoid/venv /etc/failavoid/secret /etc/failavoid/authority.pem \
  /etc/failavoid/tls/*.pem; do
  [ ! -e "$file" ] || find "$file" -maxdepth 0 -newermt "$since"
done
