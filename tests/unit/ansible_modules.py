"""Runs the project's Ansible modules in this process, for tests of what they say of themselves and return."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import ansible.module_utils
import yaml
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args

PROJECT = Path(__file__).parents[2]
NAMES = sorted(path.stem for path in (PROJECT / "library").glob("*.py"))
ansible.module_utils.__path__.append(str(PROJECT / "module_utils"))


class Ended(Exception):
    """How a module ended: what it returned."""

    def __init__(self, result: dict[str, Any], failed: bool) -> None:
        super().__init__(result)
        self.result, self.failed = result, failed


class Specified(Exception):
    """What a module gave to AnsibleModule."""

    def __init__(self, given: dict[str, Any]) -> None:
        super().__init__(given)
        self.given = given


def load(name: str) -> ModuleType:
    """A module as Python sees it."""
    spec = importlib.util.spec_from_file_location(name, PROJECT / "library" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def documented(name: str, what: str) -> dict[str, Any]:
    """A module's DOCUMENTATION or RETURN."""
    return dict(yaml.safe_load(getattr(load(name), what)))


def specification(name: str) -> dict[str, Any]:
    """What a module gives to AnsibleModule: argument_spec, supports_check_mode and so on."""
    module = load(name)

    def refuse(**given: Any) -> None:
        raise Specified(given)

    module.AnsibleModule = refuse
    try:
        module.main()
    except Specified as said:
        return said.given
    raise AssertionError(f"{name} makes no AnsibleModule")


def run(module: ModuleType, *, check: bool = False, **arguments: Any) -> Ended:
    """Run a loaded module with arguments, without a host or a connection."""

    class Module(AnsibleModule):
        def exit_json(self, **result: Any) -> None:
            raise Ended(result, False)

        def fail_json(self, msg: str, **result: Any) -> None:
            raise Ended({"msg": msg, **result}, True)

    module.AnsibleModule = Module
    with patch_module_args({**arguments, "_ansible_check_mode": check, "_ansible_diff": True}):
        try:
            module.main()
        except Ended as ended:
            return ended
    raise AssertionError(f"{module.__name__} ended without a word")
