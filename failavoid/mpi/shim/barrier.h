/* The barrier that is also the check for a notice: docs/barrier-protocol.md. */
#ifndef BARRIER_H
#define BARRIER_H

#include <stdbool.h>

#include "failavoid.h"
#include "mpi_calls.h"

/* What the application wants to be told. */
struct callbacks {
    failavoid_before *before;
    failavoid_after *after;
    void *context;
};

extern struct callbacks callbacks;

/* Be the barrier of `comm`, and the hold if a notice is there. Returns an MPI error code. */
int barrier(const struct mpi *mpi, handle comm);

/* Ask all ranks of `comm` whether one has a notice. Returns an MPI error code. */
int ask(const struct mpi *mpi, handle comm, bool *noticed);

/* Whether this thread is inside a barrier of ours: a barrier that a callback enters is MPI's own. */
bool in_barrier(void);

#endif
