"""An evacuation's way from alarm to retired host: journal first, side effects repeatable.

PREDICTED -> LEASED -> NOTICED -> GATHERED -> MIGRATING -> VERIFIED -> RELEASED -> RETIRED, or MOVED where other jobs'
guests stay on the host. The ways back are CANCELLED (until the gate opens) and FAILED; a spare that fails leads back to
PREDICTED, with the next attempt. Where nothing is to move, NOTICED -> GATHERED -> CHECKPOINTED. A restarted controller
goes on from the state in the journal: each state names what comes next, and what was begun is simply done again.
Whatever happens, the ranks are released.

Each module is named after the state that its steps lead to.
"""
