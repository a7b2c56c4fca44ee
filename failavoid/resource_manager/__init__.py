"""The resource manager: pools of hosts, jobs and their guests, leases of spares."""
