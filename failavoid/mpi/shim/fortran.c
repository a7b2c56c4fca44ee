/* The functions that stand in for MPI's in Fortran: mpif.h and `use mpi`, and mpi_f08. MPI's own would not come by the C
 * functions. Finalize needs none: see entry.c. */
#include <stddef.h>
#include <stdint.h>

#include "entry.h"
#include "rank.h"

#define EXPORT __attribute__((visibility("default")))

static void fortran_barrier(const struct mpi *mpi, const int *comm, int *error)
{
    handle in_c = mpi->Comm_f2c ? mpi->Comm_f2c(*comm) : (handle)(intptr_t)*comm;
    int result = entered_barrier(mpi, in_c);
    if (error) /* optional in mpi_f08 */
        *error = result;
}

EXPORT void mpi_barrier_(const int *comm, int *error)
{
    fortran_barrier(mpi_calls(CALLER), comm, error);
}

EXPORT void mpi_barrier_f08_(const int *comm, int *error)
{
    fortran_barrier(mpi_calls(CALLER), comm, error);
}

EXPORT void mpi_pcontrol_(const int *level)
{
    rank_enable(*level > 0);
    mpi_calls(CALLER)->Pcontrol(*level);
}

EXPORT void mpi_pcontrol_f08_(const int *level)
{
    rank_enable(*level > 0);
    mpi_calls(CALLER)->Pcontrol(*level);
}
