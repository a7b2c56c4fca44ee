"""The agent: samples its host or guest for the monitor; in a guest it also speaks for the ranks.

Standard library only and few imports, because it also runs on emulated CPUs.
"""
