/* What the C and the Fortran functions that stand in for MPI's have in common. */
#ifndef ENTRY_H
#define ENTRY_H

#include "mpi_calls.h"

/* A program has entered a barrier of `comm`. Returns an MPI error code. */
int entered_barrier(const struct mpi *mpi, handle comm);

#endif
