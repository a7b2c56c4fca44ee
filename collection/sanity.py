"""Runs `ansible-test sanity` on the collection: python collection/sanity.py TEST...

ansible-test makes an environment for each test, into which pip comes by a get-pip.py from a server of its own. Here
``get_pip.py`` takes its place, so that nothing but the package index is needed, as for everything else. What it makes
is kept in build/sanity.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

from ansible_test._internal.python_requirements import get_venv_packages

from build import NAMESPACE, PROJECT, check, lay_out

PYTHON = "3.11"


def main(tests: list[str]) -> int:
    """Run the tests; ansible-test's exit status."""
    home = PROJECT / "build/sanity"
    cache = home / ".ansible/test/cache"
    cache.mkdir(parents=True, exist_ok=True)
    pip = get_venv_packages(SimpleNamespace(version=PYTHON))["pip"]
    shutil.copy(Path(__file__).with_name("get_pip.py"), cache / f"get_pip_{pip.replace('.', '_')}.py")
    # away from the checkout, whose ignored folders ansible-test would skip
    with tempfile.TemporaryDirectory() as folder:
        collection = Path(folder, "ansible_collections", *NAMESPACE.split("."))
        lay_out(collection)
        check(collection)
        chosen = [word for test in tests for word in ("--test", test)]
        return subprocess.run(
            [Path(sys.executable).parent / "ansible-test", "sanity", "--python", PYTHON, *chosen],
            cwd=collection,
            env={**os.environ, "HOME": str(home)},
            check=False,
        ).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
