"""How many sequences of events Hypothesis tries: the same few each time, or many that are new, in `make search`."""

import os

from hypothesis import HealthCheck, settings


def tried(usually, steps):
    """Return settings for sequences of at most so many steps; FAILAVOID_MODEL_EXAMPLES is how many new ones to try."""
    asked = os.environ.get("FAILAVOID_MODEL_EXAMPLES")
    return settings(
        max_examples=int(asked or usually),
        derandomize=not asked,
        stateful_step_count=steps,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )
