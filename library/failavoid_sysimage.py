#!/usr/bin/python
# Copyright: the failavoid authors
# Apache License 2.0 (see LICENSE)
"""Ansible module: build and publish the system image, remove versions that nothing uses."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: failavoid_sysimage
short_description: Build and publish the system image of hosts, guests and the head
description:
  - Makes an image from a declaration and from what is staged for its classes, and makes it the current one by
    switching a link.
  - An image is named by a digest of its content, so nothing is built when nothing changed. Earlier images stay for
    the nodes that booted them.
  - The root is built with mmdebstrap from the packages of the host's own apt sources.
version_added: "0.1.0"
options:
  store:
    description: Folder of the image store.
    type: path
    required: true
  declaration:
    description:
      - What the image is made of as a JSON object, see the role sysimage. Not needed with O(state=pruned).
      - Its files may hold a private key from a vault, so it is never shown or logged.
    type: str
  sources:
    description: Texts of the files that the declaration names with C(source), as a JSON object. Never shown or logged.
    type: str
    default: "{}"
  package_cache:
    description: Folder that keeps downloaded packages.
    type: path
    default: /var/cache/failavoid
  state:
    description:
      - With V(published) the image is there and current.
      - With V(pruned) images and roots that nothing uses are removed. The current image, those in O(keep), and those
        that an overlay or a guest on this host uses stay. With O(not_asked) all stay, and a warning names
        who was not asked.
    type: str
    choices: [published, pruned]
    default: published
  keep:
    description: Digests of images to keep, with O(state=pruned).
    type: list
    elements: str
    default: []
  not_asked:
    description: Hosts of which it is not known what they and their guests use, with O(state=pruned).
    type: list
    elements: str
    default: []
attributes:
  check_mode:
    support: full
    description: Says whether an image would be built or switched to, or what would be removed.
  diff_mode:
    support: full
    description: Shows the current image's digest, or the versions that go.
  idempotent:
    support: full
    description: The same declaration and staged content give the same image and no change.
author:
  - The failavoid authors (@failavoid)
"""

EXAMPLES = r"""
- name: Publish the system image
  failavoid_sysimage:
    store: /var/lib/failavoid/sysimage
    declaration: "{{ lookup('ansible.builtin.file', 'sysimage.yml') | from_yaml | to_json }}"

- name: Remove images that nothing uses
  failavoid_sysimage:
    store: /var/lib/failavoid/sysimage
    state: pruned
    keep: [5e3ac6acb4a1f3c2]
"""

RETURN = r"""
digest:
  description: The current image.
  returned: always
  type: str
root:
  description: The root of that image.
  returned: with O(state=published)
  type: str
previous:
  description: The image that was current before, empty if there was none.
  returned: with O(state=published)
  type: str
built:
  description: What was built.
  returned: with O(state=published)
  type: list
  elements: str
  sample: [root, image]
seconds:
  description: How long building took, in seconds.
  returned: with O(state=published)
  type: float
removed:
  description: Digests of removed images and roots.
  returned: with O(state=pruned)
  type: list
  elements: str
"""

import contextlib
import json
import socket
import time
from pathlib import Path
from typing import Any, Dict

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.failavoid.sysimage import (
    Store,
    SysimageError,
    image_digest,
    parse_declaration,
    root_digest,
)
from ansible.module_utils.failavoid.sysimage_build import build_root


def json_object(params: Dict[str, Any], name: str) -> Dict[str, Any]:
    """The JSON object that an option holds. Raises SysimageError, which shows nothing of it."""
    try:
        given = json.loads(params[name])
    except ValueError as error:
        raise SysimageError(f"{name}: give it as JSON, with the filter to_json ({error})") from error
    if not isinstance(given, dict):
        raise SysimageError(f"{name}: a JSON object is needed, not {type(given).__name__}")
    return given


def publish(store: Store, params: Dict[str, Any], check: bool) -> Dict[str, Any]:
    """Make the declared image current."""
    declaration = parse_declaration(json_object(params, "declaration"), json_object(params, "sources"))
    digest, root = image_digest(declaration, store.staging), root_digest(declaration)
    previous = store.current() or ""
    result: Dict[str, Any] = {
        "digest": digest,
        "root": root,
        "previous": previous,
        "built": [],
        "seconds": 0.0,
    }
    if digest == previous and store.root(root).is_dir():
        return {**result, "changed": False}
    begun = time.monotonic()
    missing = {"root": store.root(root), "image": store.image(digest)}
    if not check:
        with store.locked() as lock:
            if not store.root(root).is_dir():
                build_root(store, declaration, Path(params["package_cache"]), lock)
                result["built"].append("root")
            if not store.image(digest).is_dir():
                store.publish(declaration, digest)
                result["built"].append("image")
            store.switch(digest)
    else:
        result["built"] = [name for name, path in missing.items() if not path.is_dir()]
    result["seconds"] = round(time.monotonic() - begun, 1)
    return {**result, "changed": True, "diff": {"before": f"{previous}\n", "after": f"{digest}\n"}}


def prune(store: Store, keep: list[str], check: bool) -> Dict[str, Any]:
    """Remove what nothing uses."""
    if not store.path.is_dir():
        return {"changed": False, "digest": "", "removed": []}
    with contextlib.nullcontext() if check else store.locked():  # to lock it is to tidy it up
        images, roots = store.unused(keep)
        if not check:
            store.remove(images, roots)
    removed = images + roots
    diff = {"before": "".join(f"{name}\n" for name in removed), "after": ""}
    return {"changed": bool(removed), "digest": store.current() or "", "removed": removed, "diff": diff}


def main() -> None:
    """Run as an Ansible module."""
    module = AnsibleModule(
        argument_spec={
            "store": {"type": "path", "required": True},
            "declaration": {"type": "str", "no_log": True},
            "sources": {"type": "str", "default": "{}", "no_log": True},
            "package_cache": {"type": "path", "default": "/var/cache/failavoid"},
            "state": {"type": "str", "choices": ["published", "pruned"], "default": "published"},
            "keep": {"type": "list", "elements": "str", "default": []},
            "not_asked": {"type": "list", "elements": "str", "default": []},
        },
        required_if=[("state", "published", ["declaration"])],
        supports_check_mode=True,
    )
    store = Store(module.params["store"])
    try:
        if module.params["state"] == "pruned" and module.params["not_asked"]:
            module.warn(
                f"No image was removed: {', '.join(module.params['not_asked'])} could not be asked which images are in "
                "use there (left out by --limit, or not reachable). Prune when all hosts answer; take hosts that are "
                "gone out of the inventory."
            )
            result = {
                "changed": False,
                "digest": store.current() or "",
                "removed": [],
                "diff": {"before": "", "after": ""},
            }
        elif module.params["state"] == "pruned":
            result = prune(store, module.params["keep"], module.check_mode)
        else:
            result = publish(store, module.params, module.check_mode)
    except (SysimageError, OSError) as error:
        module.fail_json(msg=f"{socket.gethostname()}: system image: {error}")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
