"""The demonstration: ``python -m failavoid.demo [--scale default|rack|paper] [--testbed-only]``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from failavoid.demo.demonstration import alone, run_demonstration
from failavoid.demo.deploy import PlaybookError
from failavoid.demo.runs import DemonstrationError
from failavoid.demo.scale import SCALES
from failavoid.demo.site import CommandError

INTERRUPTED = 130  # as a shell tells it


def main() -> int:
    """Parse the command line and run; a failure is one sentence and exit status 1."""
    parser = argparse.ArgumentParser(prog="python -m failavoid.demo", description=__doc__)
    parser.add_argument("--scale", choices=sorted(SCALES), default="default")
    parser.add_argument("--testbed-only", action="store_true", help="make the testbed, then stop")
    arguments = parser.parse_args()
    project = Path(__file__).resolve().parents[2]
    try:
        with alone():
            return run_demonstration(project, SCALES[arguments.scale], arguments.testbed_only)
    except (PlaybookError, DemonstrationError, CommandError) as error:
        what = "The testbed was not made" if arguments.testbed_only else "The demonstration stopped"
        print(f"\n{what}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "\nInterrupted. The same command goes on with what is there; 'make clean-testbed' removes it.",
            file=sys.stderr,
        )
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
