"""Certificates of a site as the module failavoid_certificates issues them, for tests of what is read from them."""

import importlib.util
from pathlib import Path

MODULE = Path(__file__).parents[2] / "library/failavoid_certificates.py"

_spec = importlib.util.spec_from_file_location("failavoid_certificates", MODULE)
certificates = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(certificates)


class Authority:
    """A site's authority in ``folder``."""

    def __init__(self, folder):
        self.folder = folder
        certificates.authority(folder)
        self.certificate = folder / "ca-cert.pem"

    def issue(self, name, *addresses):
        """Return the files of a new certificate and its key."""
        certificates.issue(self.folder, name, list(addresses))
        return self.folder / f"{name}-cert.pem", self.folder / f"{name}-key.pem"
