"""Measurements on the testbed: `make bench` writes build/bench/*.json. Nothing here passes or fails."""
