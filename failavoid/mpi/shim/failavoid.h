/* What an MPI program may ask of failavoid, and be told by it. Nothing here is needed to take part: every
 * program that runs with libfailavoid-mpi stops at its barriers. From Fortran: through ISO_C_BINDING. */
#ifndef FAILAVOID_H
#define FAILAVOID_H

#ifdef __cplusplus
extern "C" {
#endif

enum failavoid_kind {
    FAILAVOID_MOVE = 1,       /* guests are about to move: ranks on them stop */
    FAILAVOID_CHECKPOINT = 2, /* nothing will move: write a checkpoint, a host is about to fail */
};

enum failavoid_outcome {
    FAILAVOID_MOVED = 1,
    FAILAVOID_CANCELLED = 2, /* nothing moved */
    FAILAVOID_LIMIT = 3,     /* FAILAVOID_LIMIT_S passed first: the next barrier stops again */
    FAILAVOID_NO_PAGE = 4,   /* the leading rank's guest has no agent: nobody could tell when the guests had moved */
};

/* Collective over MPI_COMM_WORLD: sets *flag to 1, on all ranks alike, if a notice is there that the job has not handled,
 * else to 0. For programs with few barriers: at a good moment ask, and where the answer is 1 call
 * MPI_Barrier(MPI_COMM_WORLD), which stops the ranks whose guests move. Returns an MPI error code. */
int failavoid_should_migrate(int *flag);

/* Called on every rank of the communicator whose barrier found a notice: `before` when nobody has stopped yet, `after` when
 * all run again (not after a checkpoint). Both may use MPI, barriers included; `before` must leave no message on its way.
 * Either may be NULL. Set them on all ranks or on none. */
typedef void failavoid_before(enum failavoid_kind kind, void *context);
typedef void failavoid_after(enum failavoid_outcome outcome, void *context);
void failavoid_set_callbacks(failavoid_before *before, failavoid_after *after, void *context);

#ifdef __cplusplus
}
#endif
#endif
