/* The functions that stand in for MPI's: C programs, and Python's mpi4py. */
#define _GNU_SOURCE
#include "entry.h"

#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>

#include "barrier.h"
#include "failavoid.h"
#include "rank.h"

#define EXPORT __attribute__((visibility("default")))

/* What is remembered of one communicator, as an attribute of it: ranks that counted differently would wait for each
 * other for ever. */
struct barriers {
    bool eligible; /* a notice is looked for: it has the world's size, and the job is protected */
    uint64_t every;
    uint64_t count;
};

static int keep_nothing(handle comm, int keyval, void *extra, void *value, void *copy, int *keep)
{
    (void)comm, (void)keyval, (void)extra, (void)value, (void)copy;
    return *keep = 0; /* a duplicate counts for itself */
}

static int forget(handle comm, int keyval, void *value, void *extra)
{
    (void)comm, (void)keyval, (void)extra;
    free(value);
    return 0;
}

/* MPI_Finalize begins with deleting the attributes of MPI_COMM_SELF, whatever language it was called from. */
static int finalizing(handle comm, int keyval, void *value, void *extra)
{
    (void)comm, (void)keyval, (void)value, (void)extra;
    rank_deregister();
    return 0;
}

static int keyval_of_barriers(const struct mpi *mpi)
{
    static _Atomic int made;
    int keyval = made, end_keyval = 0;
    if (!keyval && !mpi->Comm_create_keyval(keep_nothing, forget, &keyval, NULL)) {
        int none = 0;
        if (!atomic_compare_exchange_strong(&made, &none, keyval))
            return none; /* another thread was faster */
        if (!mpi->Comm_create_keyval(keep_nothing, finalizing, &end_keyval, NULL))
            mpi->Comm_set_attr(mpi->self, end_keyval, NULL);
    }
    return keyval;
}

/* Decide, on all ranks alike, how the barriers of a communicator are to be. */
static int decide(const struct mpi *mpi, handle comm, struct barriers *barriers)
{
    int inter = 0, size = 0, world = 0, me = 0, error;
    if ((error = mpi->Comm_test_inter(comm, &inter)) || inter)
        return error;
    if ((error = mpi->Comm_size(comm, &size)) || (error = mpi->Comm_size(mpi->world, &world)) || size != world)
        return error;
    mpi->Comm_rank(mpi->world, &me);
    const struct settings *settings = rank_settings(me == 0);
    uint64_t mine[2] = {settings->protected, settings->every}, all[2] = {0, 1};
    if ((error = mpi->Allreduce(mine, all, 2, mpi->uint64, mpi->max, comm)))
        return error;
    barriers->eligible = all[0];
    barriers->every = all[1];
    static atomic_bool said;
    if (all[0] && me == 0 && !rank_find_page() && !atomic_exchange(&said, true))
        rank_say("no page in %s: no notice can arrive until the guest's agent makes one", settings->folder);
    return 0;
}

static int barriers_of(const struct mpi *mpi, handle comm, struct barriers **barriers)
{
    int found = 0, error;
    int keyval = keyval_of_barriers(mpi);
    *barriers = NULL;
    if ((error = mpi->Comm_get_attr(comm, keyval, barriers, &found)) || found)
        return error;
    *barriers = calloc(1, sizeof **barriers);
    if (!*barriers)
        abort(); /* the other ranks would wait for this one for ever */
    if ((error = decide(mpi, comm, *barriers)))
        return error;
    return mpi->Comm_set_attr(comm, keyval, *barriers);
}

int entered_barrier(const struct mpi *mpi, handle comm)
{
    struct barriers *barriers;
    if (in_barrier())
        return mpi->Barrier(comm);
    int error = barriers_of(mpi, comm, &barriers);
    if (error)
        return error;
    if (!barriers->eligible || ++barriers->count % barriers->every)
        return mpi->Barrier(comm);
    return barrier(mpi, comm);
}

EXPORT int MPI_Barrier(handle comm)
{
    return entered_barrier(mpi_calls(CALLER), comm);
}

EXPORT int MPI_Pcontrol(const int level, ...)
{
    rank_enable(level > 0);
    return mpi_calls(CALLER)->Pcontrol(level);
}

EXPORT int failavoid_should_migrate(int *flag)
{
    const struct mpi *mpi = mpi_calls(CALLER);
    struct barriers *barriers;
    bool noticed = false;
    int error = barriers_of(mpi, mpi->world, &barriers);
    if (!error && barriers->eligible)
        error = ask(mpi, mpi->world, &noticed);
    if (noticed)
        barriers->count = barriers->every - 1; /* the next barrier looks, whatever FAILAVOID_EVERY says */
    *flag = noticed;
    return error;
}

EXPORT void failavoid_set_callbacks(failavoid_before *before, failavoid_after *after, void *context)
{
    callbacks = (struct callbacks){before, after, context};
}
