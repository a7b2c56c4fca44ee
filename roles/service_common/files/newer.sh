#!/bin/sh
# Name what a service of the head was to be started from since it was: a run of Ansible that was interrupted has written
# it and restarted nothing. Says nothing of a service that has not been started.
#   newer.sh UNIT SETTINGS...
set -eu
since=$(systemctl show --property=ExecMainStartTimestamp --value --timestamp=us+utc "$1")
[ -n "$since" ] || exit 0
unit=$1
shift
case $unit in
failavoid-*)
  set -- "$@" "/etc/systemd/system/$unit" /opt/failavoid/venv /etc/failavoid/secret /etc/failavoid/authority.pem \
    /etc/failavoid/tls/*.pem
  ;;
esac
for file in "$@"; do
  [ ! -e "$file" ] || find "$file" -maxdepth 0 -newermt "$since"
done
