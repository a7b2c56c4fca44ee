"""What the Ansible modules, the agent and the services share.

Standard library only, Python 3.9 and later: these files travel to hosts inside
Ansible modules (as ``ansible.module_utils.failavoid``) and are installed with the
services and the agent (as ``failavoid.shared``). One source for both.
"""
