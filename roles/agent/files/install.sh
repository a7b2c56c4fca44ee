#!/bin/sh
# Install the agent's files from an archive on standard input (tar, gzip, base64), and say "changed" if they were not
# there already, or if an agent runs that is older than what it is to be started from: a run that was interrupted has
# not restarted it. Other parts of the package beside them stay.
#   install.sh ROOT PYTHON
set -eu
umask 022
lib=$1/opt/failavoid/lib python=$2
mkdir -p "$lib/failavoid"
new=$(mktemp -d "$lib/.agent.XXXXXX")
trap 'rm -rf "$new"' EXIT
cat >"$new/archive"
digest=$(sha256sum <"$new/archive" | cut -d' ' -f1)
if [ "$(cat "$lib/.agent-digest" 2>/dev/null || true)" = "$digest" ]; then
  [ -z "$1" ] || exit 0
  since=$(systemctl show --property=ExecMainStartTimestamp --value --timestamp=us+utc failavoid-agent.service)
  [ -n "$since" ] || exit 0
  for file in "$lib/.agent-digest" /etc/failavoid/agent.json /etc/systemd/system/failavoid-agent.service; do
    [ ! -e "$file" ] || find "$file" -maxdepth 0 -newermt "$since" -printf 'changed: %p\n'
  done
  exit 0
fi
base64 -d "$new/archive" | tar -xzf - -C "$new" --no-same-owner
[ -e "$new/failavoid/agent/__main__.py" ] && [ -e "$new/failavoid/shared/samples.py" ] || {
  echo "the archive of the agent's files is not complete: is agent_project a checkout of failavoid?" >&2
  exit 1
}
# Compiled here, because neither a protected service nor a read-only root can write what it compiles; unchecked, because
# making an image may change times.
"$python" -m compileall -q -s "$new" -p /opt/failavoid/lib --invalidation-mode unchecked-hash "$new/failavoid"
for part in agent shared __init__.py; do
  rm -rf "$lib/failavoid/$part"
  mv "$new/failavoid/$part" "$lib/failavoid/$part"
done
echo "$digest" >"$lib/.agent-digest"
echo changed
