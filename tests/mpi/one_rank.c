/* An MPI of one rank, with the handles of MPICH, that counts what is called of it; to be preloaded. Counts also how often
 * something of a job's folder is opened. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdarg.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define COUNTED(name) int calls_##name; int PMPI_##name
#define UNUSED(name, arguments) COUNTED(name) arguments { return calls_##name++ * 0; }

int opened;
static void *attributes[9];
static int keyvals;

int open(const char *path, int flags, ...)
{
    va_list more;
    va_start(more, flags);
    int mode = va_arg(more, int); /* noise where there is none, and unused then */
    va_end(more);
    opened += strstr(path, "/jobs/") != NULL;
    return (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}

UNUSED(Barrier, (int comm))
UNUSED(Allgather, (void))
UNUSED(Bcast, (void))
UNUSED(Ibcast, (void))
UNUSED(Test, (void))
UNUSED(Pcontrol, (int level))

COUNTED(Allreduce)(const void *send, void *receive, int count, int type, int op, int comm)
{
    (void)type, (void)op, (void)comm;
    memcpy(receive, send, (size_t)count * 8);
    return calls_Allreduce++ * 0;
}

COUNTED(Comm_rank)(int comm, int *rank)
{
    (void)comm;
    return *rank = calls_Comm_rank++ * 0;
}

COUNTED(Comm_size)(int comm, int *size)
{
    (void)comm;
    *size = 1;
    return calls_Comm_size++ * 0;
}

COUNTED(Comm_test_inter)(int comm, int *inter)
{
    (void)comm;
    return *inter = calls_Comm_test_inter++ * 0;
}

COUNTED(Comm_create_keyval)(void *copy, void *remove, int *keyval, void *extra)
{
    (void)copy, (void)remove, (void)extra;
    *keyval = ++keyvals;
    return calls_Comm_create_keyval++ * 0;
}

COUNTED(Comm_get_attr)(int comm, int keyval, void *value, int *found)
{
    (void)comm;
    *(void **)value = attributes[keyval];
    *found = attributes[keyval] != NULL;
    return calls_Comm_get_attr++ * 0;
}

COUNTED(Comm_set_attr)(int comm, int keyval, void *value)
{
    (void)comm;
    attributes[keyval] = value;
    return calls_Comm_set_attr++ * 0;
}
