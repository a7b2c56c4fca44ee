#!/bin/sh
# Install the bundle as /opt/failavoid/venv-DIGEST, point /opt/failavoid/venv at it, make the site's secret and the
# users' tokens where they are missing, and take the tokens of other users away. Says "changed" if it changed anything that is in use; may be run again at
# any time.
#   install.sh DIGEST PYTHON_VERSION [JOB_USER ...]
set -eu
umask 027
digest=$1 python=$2
shift 2
new=/opt/failavoid/venv-$digest
changed() { echo "changed: $*"; }

install -d -o root -g failavoid -m 0750 /etc/failavoid /etc/failavoid/ssh /etc/failavoid/inventory
install -d -o root -g root -m 0711 /etc/failavoid/tokens
install -d -o root -g root -m 0755 /var/lib/failavoid /opt/failavoid
chmod 0751 /etc/failavoid # job users pass through to their own token
key=/etc/failavoid/ssh/id_ed25519
if [ ! -s "$key" ]; then
  ssh-keygen -q -t ed25519 -N '' -C failavoid -f "$key"
  changed key
fi
chown failavoid:failavoid "$key" # ssh wants a key to be its user's alone
chmod 0400 "$key"

if [ ! -e "$new/.complete" ]; then
  unpacked=$(mktemp -d /opt/failavoid/unpacked.XXXXXX)
  trap 'rm -rf "$unpacked"' EXIT
  tar -C "$unpacked" -xf /var/cache/failavoid-bundle.tar
  rm -rf "$new"
  umask 022
  export UV_CACHE_DIR="$unpacked/cache" UV_OFFLINE=1 UV_NO_CONFIG=1
  # libvirt's Python module comes from the distribution, hence the system's packages
  "$unpacked/uv" -q venv --system-site-packages --python "/usr/bin/python$python" "$new"
  "$unpacked/uv" -q pip install --python "$new/bin/python" --no-index --no-deps --compile-bytecode \
    -r "$unpacked/requirements.txt" --find-links "$unpacked/wheels" "$unpacked"/wheels/failavoid-*.whl
  touch "$new/.complete"
  umask 027
  changed installed "$digest"
fi
previous=$(readlink /opt/failavoid/venv || true)
if [ "$previous" != "$new" ]; then
  ln -sfn "$new" /opt/failavoid/venv.new && mv -T /opt/failavoid/venv.new /opt/failavoid/venv
  ln -sf /opt/failavoid/venv/bin/failavoid /usr/local/bin/failavoid
  changed switched
fi
# The services run from the version they were started from until the site's last play restarts them, and so does a
# playbook that moves guests: such a version stays, for a later run to remove.
for old in /opt/failavoid/venv-*; do
  case $old in "$new" | "$previous") continue ;; esac
  grep -qsae "${old}[/]" /proc/[0-9]*/cmdline || rm -rf "$old" # in brackets, or grep would find its own words
done

secret=/etc/failavoid/secret
if [ ! -s "$secret" ]; then
  head -c 48 /dev/urandom | base64 -w0 >"$secret"
  changed secret
fi
chown root:failavoid "$secret"
chmod 0640 "$secret"

token() { # ROLE SUBJECT FILE OWNER
  text=$("/opt/failavoid/venv/bin/python" -c '
import sys
from failavoid.shared.tokens import mint, read_secret
print(mint(read_secret(sys.argv[1]), *sys.argv[2:]))' "$secret" "$1" "$2")
  if [ "$(cat "$3" 2>/dev/null || true)" != "$text" ]; then
    (umask 077 && printf '%s\n' "$text" >"$3")
    chown "$4" "$3"
    chmod 0400 "$3"
    changed "token of $2"
  fi
}
token operator admin /etc/failavoid/tokens/root root
for user in "$@"; do token user "$user" "/etc/failavoid/tokens/$user" "$user"; done
for user in ${FAILAVOID_READERS:-}; do
  case " $* " in *" $user "*) continue ;; esac # a job user reads anyway
  token reader "$user" "/etc/failavoid/tokens/$user" "$user"
done
for file in /etc/failavoid/tokens/*; do
  user=${file##*/}
  case " root $* ${FAILAVOID_READERS:-} " in *" $user "*) continue ;; esac
  rm -f "$file"
  changed "token of $user removed"
done
