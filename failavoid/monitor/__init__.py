"""The monitor: takes the agents' samples, follows the jobs' hosts, judges them, raises alarms."""
