/* The page and the slots through which ranks and their guest's agent speak: docs/barrier-protocol.md has the layout,
 * module_utils/failavoid/page.py is the agent's side and the Python wrapper's. */
#ifndef PAGE_H
#define PAGE_H

#include <stdbool.h>
#include <stdint.h>

/* What a page holds: the last epoch of the job, and the last epochs that ended either way. */
struct posted {
    uint64_t epoch;
    uint64_t kind; /* of that epoch: enum failavoid_kind */
    uint64_t done;
    uint64_t cancelled;
    char *text; /* lines: the host that is left, the new host (either may be empty), then the affected guests */
};

/* Map the page of the job whose folder this is, and take a slot. Returns whether both worked; may be tried again. */
bool page_open(const char *folder);

uint64_t page_epoch(void);
uint64_t page_done(void);
uint64_t page_cancelled(void);

/* Read what belongs together; free(posted->text) is the caller's. False if the page stays half-written. */
bool page_read(struct posted *posted);

/* Tell the agent that a thread of this rank is stopped at a barrier, outside MPI, for `epoch`; that it runs again; that
 * the checkpoint asked for in `epoch` is written; that this rank takes no part any more. */
void slot_stop(uint64_t epoch);
void slot_resume(void);
void slot_checkpointed(uint64_t epoch);
void slot_deregister(void);

#endif
