"""What `make sanity` gives to ansible-test in place of its get-pip.py, which comes from a server of its own.

It is run in an empty virtual environment, with what pip is to install: Python's own ensurepip brings a pip, which then
installs that from the index that pip is set up for.
"""

import ensurepip
import subprocess
import sys

ensurepip.bootstrap()
words = [word for word in sys.argv[1:] if word not in ("--no-setuptools", "--no-wheel")]  # of get-pip.py alone
sys.exit(subprocess.run([sys.executable, "-m", "pip", "install", *words], check=False).returncode)
