/* Finds MPI. There is no mpi.h here and no link to libmpi, so that one library serves all of them; where the MPI libraries
 * differ are the predefined handles: numbers in MPICH and in the standard ABI, addresses of objects in Open MPI. */
#define _GNU_SOURCE
#include "mpi_calls.h"

#include <dlfcn.h>
#include <link.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define NUMBER(number) ((handle)(uintptr_t)(number))

static struct mpi found;

#ifdef FAILAVOID_STATIC
/* Linked into the program together with MPI, which the linker has found: what one MPI lacks is NULL. */
#define WEAK __attribute__((weak))
#define DECLARE(name, arguments) extern int PMPI_##name arguments;
MPI_CALLS(DECLARE)
#undef DECLARE
extern WEAK handle PMPI_Comm_f2c(int comm);
extern WEAK int PMPI_Abi_get_version(int *major, int *minor);
extern WEAK char ompi_mpi_comm_world[], ompi_mpi_comm_self[], ompi_mpi_uint64_t[], ompi_mpi_byte[], ompi_mpi_op_max[];

static void find_calls(void *caller)
{
    (void)caller;
#define TAKE(name, arguments) found.name = PMPI_##name;
    MPI_CALLS(TAKE)
#undef TAKE
    found.Comm_f2c = PMPI_Comm_f2c;
}
#define FUNCTION(name) ((void *)(uintptr_t)name)
#define OBJECT(name) ((void *)name)

#else
#ifdef __x86_64__ /* the oldest versions, so that the library runs with older C libraries than it was built with */
__asm__(".symver dlopen,dlopen@GLIBC_2.2.5");
__asm__(".symver dlsym,dlsym@GLIBC_2.2.5");
__asm__(".symver dladdr,dladdr@GLIBC_2.2.5");
#endif

static void *library = RTLD_NEXT;
#define FUNCTION(name) dlsym(library, #name)
#define OBJECT(name) find_object(#name)

static void *find_object(const char *name)
{
    void *object = dlsym(RTLD_DEFAULT, name); /* first: a program may have been linked to have the only copy itself */
    return object ? object : dlsym(library, name);
}

/* Take an object of this process, or what it is linked to, if MPI is there. */
static int try_object(const char *name)
{
    void *object = name && *name ? dlopen(name, RTLD_LAZY | RTLD_NOLOAD) : NULL;
    if (!object || !dlsym(object, "PMPI_Barrier"))
        return 0;
    library = object;
    return 1;
}

static int try_loaded(struct dl_phdr_info *info, size_t size, void *nothing)
{
    (void)size, (void)nothing;
    return try_object(info->dlpi_name);
}

static void find_calls(void *caller)
{
    /* First in what the caller is linked to: Python loads MPI out of everyone else's sight (RTLD_LOCAL). Last anywhere: when
     * Python itself calls (ctypes), the caller knows no MPI. */
    Dl_info where;
    if (!(dladdr(caller, &where) && try_object(where.dli_fname)) && !dlsym(RTLD_NEXT, "PMPI_Barrier"))
        dl_iterate_phdr(try_loaded, NULL);
#define TAKE(name, arguments)                                                                                      \
    if (!(*(void **)&found.name = dlsym(library, "PMPI_" #name))) {                                                \
        fprintf(stderr, "failavoid: no PMPI_" #name " in this process: preload libfailavoid-mpi.so only for ranks" \
                        " of programs that are linked to a shared MPI, or link libfailavoid-mpi.a\n");             \
        abort();                                                                                                   \
    }
    MPI_CALLS(TAKE)
#undef TAKE
    *(void **)&found.Comm_f2c = FUNCTION(PMPI_Comm_f2c);
}
#endif

static void find_handles(void)
{
    int major = 0, minor = 0;
    int (*abi_version)(int *, int *);
    *(void **)&abi_version = FUNCTION(PMPI_Abi_get_version);
    if (abi_version)
        abi_version(&major, &minor);
    if (major > 0) { /* the standard ABI, MPI 5.0, appendix A */
        found.world = NUMBER(0x101);
        found.self = NUMBER(0x102);
        found.uint64 = NUMBER(0x259);
        found.byte = NUMBER(0x247);
        found.max = NUMBER(0x23);
    } else if (OBJECT(ompi_mpi_comm_world)) {
        found.world = OBJECT(ompi_mpi_comm_world);
        found.self = OBJECT(ompi_mpi_comm_self);
        found.uint64 = OBJECT(ompi_mpi_uint64_t);
        found.byte = OBJECT(ompi_mpi_byte);
        found.max = OBJECT(ompi_mpi_op_max);
    } else { /* MPICH's ABI: MPICH, Intel MPI, MVAPICH, Cray MPICH */
        found.world = NUMBER(0x44000000);
        found.self = NUMBER(0x44000001);
        found.uint64 = NUMBER(0x4c00083e);
        found.byte = NUMBER(0x4c00010d);
        found.max = NUMBER(0x58000001);
    }
}

const struct mpi *mpi_calls(void *caller)
{
    static atomic_bool ready;
    if (!atomic_load_explicit(&ready, memory_order_acquire)) {
        find_calls(caller); /* two threads may do this at once, and write the same */
        find_handles();
        atomic_store_explicit(&ready, 1, memory_order_release);
    }
    return &found;
}
