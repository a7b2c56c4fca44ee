"""The testbed's fixtures, for tests that break what they find."""

from tests.testbed.conftest import inventory, services, site

__all__ = ["inventory", "services", "site"]
