#!/bin/sh
# Install the MPI wrapper's files from an archive on standard input (tar, gzip, base64), and say "changed" if they were
# not there already. Other parts of the package beside them stay.
#   install.sh ROOT PYTHON MODULEFILES
set -eu
umask 022
lib=$1/opt/failavoid/lib python=$2
mkdir -p "$lib/failavoid" "$1/opt/failavoid/bin" "$1$3"
new=$(mktemp -d "$lib/.mpi.XXXXXX")
trap 'rm -rf "$new"' EXIT
cat >"$new/archive"
digest=$(sha256sum <"$new/archive" | cut -d' ' -f1)
[ "$(cat "$lib/.mpi-digest" 2>/dev/null || true)" != "$digest" ] || exit 0
base64 -d "$new/archive" | tar -xzf - -C "$new" --no-same-owner
[ -e "$new/failavoid/mpi/__main__.py" ] && [ -e "$new/failavoid/shared/page.py" ] || {
  echo "the archive of the MPI wrapper's files is not complete: is mpi_wrapper_project a checkout of failavoid?" >&2
  exit 1
}
# Compiled here, because users can't write beside the sources; unchecked, because making an image may change times.
"$python" -m compileall -q -s "$new" -p /opt/failavoid/lib --invalidation-mode unchecked-hash "$new/failavoid"
for part in mpi shared __init__.py; do
  rm -rf "$lib/failavoid/$part"
  mv "$new/failavoid/$part" "$lib/failavoid/$part"
done
mv "$new/failavoid-mpi" "$new/failavoid-mpirun" "$1/opt/failavoid/bin/"
# renamed into place, because running ranks may have the old library mapped
for file in lib/libfailavoid-mpi.so lib/libfailavoid-mpi.a lib/pkgconfig/failavoid-mpi.pc include/failavoid.h; do
  if [ -e "$new/$file" ]; then
    mkdir -p "$1/opt/failavoid/${file%/*}"
    mv "$new/$file" "$1/opt/failavoid/$file"
  else
    rm -f "$1/opt/failavoid/$file"
  fi
done
echo "$digest" >"$lib/.mpi-digest"
echo changed
