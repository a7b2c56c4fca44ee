/* The few calls of MPI that the shim makes, found at run time in the program's own MPI, whichever it is. */
#ifndef MPI_CALLS_H
#define MPI_CALLS_H

/* A handle of any MPI. MPICH's are ints, Open MPI's and the standard ABI's are pointers: both come and go in one
 * register (of an int the upper half is noise, so handles are handed on and never compared). */
typedef void *handle;

typedef int attribute_copy(handle comm, int keyval, void *extra, void *value, void *copy, int *keep);
typedef int attribute_delete(handle comm, int keyval, void *value, void *extra);

#define MPI_CALLS(call)                                                                                               \
    call(Barrier, (handle comm))                                                                                      \
    call(Allreduce, (const void *send, void *receive, int count, handle type, handle op, handle comm))                \
    call(Allgather, (const void *send, int sends, handle send_type, void *receive, int receives, handle receive_type, \
                     handle comm))                                                                                    \
    call(Bcast, (void *buffer, int count, handle type, int root, handle comm))                                        \
    call(Ibcast, (void *buffer, int count, handle type, int root, handle comm, handle *request))                      \
    call(Test, (handle *request, int *done, void *status))                                                            \
    call(Comm_rank, (handle comm, int *rank))                                                                         \
    call(Comm_size, (handle comm, int *size))                                                                         \
    call(Comm_test_inter, (handle comm, int *inter))                                                                  \
    call(Comm_create_keyval, (attribute_copy *copy, attribute_delete *remove, int *keyval, void *extra))              \
    call(Comm_get_attr, (handle comm, int keyval, void *value, int *found))                                           \
    call(Comm_set_attr, (handle comm, int keyval, void *value))                                                       \
    call(Pcontrol, (const int level, ...))

struct mpi {
#define DECLARE(name, arguments) int(*name) arguments;
    MPI_CALLS(DECLARE)
#undef DECLARE
    handle (*Comm_f2c)(int comm); /* NULL where C and Fortran have the same handles */
    handle world, self, uint64, byte, max;
};

/* The calls of the MPI that the code at `caller`, a return address, is linked to. Never NULL: ends the process with a
 * sentence if there is no MPI. */
const struct mpi *mpi_calls(void *caller);

#define CALLER __builtin_return_address(0)

#endif
