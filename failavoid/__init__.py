"""Failure avoidance for MPI jobs: move guests away from hosts that are about to fail."""

__version__ = "0.1.0"
