"""The parts know one another by the HTTP API alone."""

import ast
from pathlib import Path

import httpx
import pytest

from failavoid.controller.manager import ResourceManager
from failavoid.shared.messages import Lease, LeaseRequest, Membership, to_dict

PROJECT = Path(__file__).parents[2]
PARTS = ("agent", "cli", "controller", "monitor", "mpi", "resource_manager")


def imported(path):
    """The modules that a file imports, by their whole names."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("part", PARTS)
def test_a_part_imports_no_other(part):
    files = list((PROJECT / "failavoid" / part).rglob("*.py"))
    assert files
    others = tuple(f"failavoid.{other}." for other in PARTS if other != part)
    found = {f"{path.name}: {name}" for path in files for name in imported(path) if f"{name}.".startswith(others)}
    assert not found


def test_what_is_shared_imports_nothing_of_the_parts():
    for path in (PROJECT / "module_utils/failavoid").glob("*.py"):
        assert not [name for name in imported(path) if name.startswith("failavoid.")], path.name


def test_the_controller_asks_no_more_of_a_resource_manager_than_is_described():
    """Another one, on a site's scheduler, may take the built-in one's place."""
    documents = {
        "/membership": to_dict(Membership(1, [], [], [])),
        "/leases": to_dict(Lease("ID", "NAME", "e-1", 0.0)),
        "/placements": [],
    }
    asked = []

    def answer(request):
        asked.append((request.method, request.url.path))
        return httpx.Response(200, json=documents.get(request.url.path))

    manager = ResourceManager("http://127.0.0.1", "token", httpx.MockTransport(answer))
    words = {
        "membership": (),
        "lease": (LeaseRequest("e-1"),),
        "give_back": ("ID",),
        "place": ([], "NAME"),
        "commit": ("ID", []),
        "suspect": ("NAME", "", "", ""),
        "trust": ("NAME",),
        "retire": ("NAME", ""),
    }
    assert set(words) == {name for name in vars(ResourceManager) if not name.startswith("_")}
    for name, given in words.items():
        getattr(manager, name)(*given)
    described = (PROJECT / "docs/architecture.md").read_text().split("Of the resource manager the controller knows")[1]
    for method, path in asked:
        known = path.rsplit("/", 1)[-1] if path.startswith("/hosts/") else f"{method} {path}"
        assert f"`{known}`" in described, path
