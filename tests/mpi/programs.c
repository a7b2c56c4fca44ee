/* programs.py in C: `programs SCENARIO FOLDER [ARGUMENT]`, the same scenarios. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <mpi.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "failavoid.h"
#ifndef LINKED /* to libfailavoid-mpi */
#pragma weak failavoid_should_migrate
#pragma weak failavoid_set_callbacks
#endif

static int rank, size;
static const char *folder;
static int counter = -1;
static uint64_t counted[2];

/* The number of barriers this rank has left, for the test to read at any time. */
static void left(uint64_t by)
{
    char path[4096];
    if (counter < 0) {
        snprintf(path, sizeof path, "%s/%d", folder, rank);
        counter = open(path, O_RDWR | O_CREAT, 0644);
        counted[0] = (uint64_t)getpid();
    }
    counted[1] += by;
    if (pwrite(counter, counted, sizeof counted, 0) < 0)
        abort();
}

static int there(const char *name)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return access(path, F_OK) == 0;
}

static void note(const char *name)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    close(open(path, O_WRONLY | O_CREAT, 0644));
}

/* Rank 0 looks, all hear of it. */
static int everywhere(const char *name)
{
    int found = rank == 0 && there(name);
    MPI_Bcast(&found, 1, MPI_INT, 0, MPI_COMM_WORLD);
    return found;
}

static int go_on(void)
{
    usleep(2000);
    return !everywhere("stop");
}

static void loop(MPI_Comm comm)
{
    left(0);
    while (go_on()) {
        MPI_Barrier(comm);
        left(1);
    }
}

static MPI_Comm intercommunicator(void)
{
    MPI_Comm half, inter;
    MPI_Comm_split(MPI_COMM_WORLD, rank % 2, rank, &half);
    MPI_Intercomm_create(half, 0, MPI_COMM_WORLD, (rank + 1) % 2, 0, &inter);
    return inter;
}

static MPI_Comm derived(const char *how)
{
    MPI_Comm made = MPI_COMM_NULL;
    MPI_Group group;
    int none = 0, index[64], edges[64] = {0};
    MPI_Comm_group(MPI_COMM_WORLD, &group);
    for (int i = 0; i < size; i++)
        index[i] = i + 1;
    if (!strcmp(how, "dup"))
        MPI_Comm_dup(MPI_COMM_WORLD, &made);
    else if (!strcmp(how, "split"))
        MPI_Comm_split(MPI_COMM_WORLD, 0, -rank, &made);
    else if (!strcmp(how, "create"))
        MPI_Comm_create(MPI_COMM_WORLD, group, &made);
    else if (!strcmp(how, "create_group"))
        MPI_Comm_create_group(MPI_COMM_WORLD, group, 0, &made);
    else if (!strcmp(how, "cart"))
        MPI_Cart_create(MPI_COMM_WORLD, 1, &size, &none, 0, &made);
    else if (!strcmp(how, "graph"))
        MPI_Graph_create(MPI_COMM_WORLD, size, index, edges, 0, &made);
    else if (!strcmp(how, "merge"))
        MPI_Intercomm_merge(intercommunicator(), rank % 2, &made);
    return made;
}

static void two_counts(void)
{
    MPI_Comm other;
    MPI_Comm_dup(MPI_COMM_WORLD, &other);
    left(0);
    while (go_on()) {
        MPI_Barrier(MPI_COMM_WORLD);
        MPI_Barrier(other);
        MPI_Barrier(other);
        left(3);
    }
}

static void switched_off(void)
{
    int on = 0;
    left(0);
    MPI_Pcontrol(0);
    while (go_on()) {
        if (!on && everywhere("on"))
            MPI_Pcontrol(on = 1);
        MPI_Barrier(MPI_COMM_WORLD);
        left(1);
    }
}

static void finalize(void)
{
    char name[64];
    MPI_Barrier(MPI_COMM_WORLD);
    left(1);
    while (go_on())
        ;
    MPI_Finalize();
    snprintf(name, sizeof name, "finalized-%d", getpid());
    note(name);
    while (!there("end"))
        usleep(10000);
    exit(0);
}

/* As `loop`, but the last rank's thread sends to rank 0 once FOLDER/send is there: meant to be seen. */
static void *send_one(void *tag)
{
    char text[64] = "";
    while (!there("send"))
        usleep(10000);
    MPI_Send(text, sizeof text, MPI_CHAR, 0, atoi(tag), MPI_COMM_WORLD);
    return NULL;
}

static void message(char *tag)
{
    char text[64] = "";
    pthread_t thread;
    if (rank == size - 1) { /* once, so that there is a connection */
        MPI_Send(text, sizeof text, MPI_CHAR, 0, 0, MPI_COMM_WORLD);
        pthread_create(&thread, NULL, send_one, tag);
    } else if (rank == 0)
        MPI_Recv(text, sizeof text, MPI_CHAR, size - 1, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    loop(MPI_COMM_WORLD);
    if (rank == size - 1)
        pthread_join(thread, NULL);
    if (rank == 0)
        MPI_Recv(text, sizeof text, MPI_CHAR, size - 1, atoi(tag), MPI_COMM_WORLD, MPI_STATUS_IGNORE);
}

/* No barriers but where the wrapper says so. */
static void asking(void)
{
    left(0);
    while (go_on()) {
        int flag;
        failavoid_should_migrate(&flag);
        if (flag)
            MPI_Barrier(MPI_COMM_WORLD);
        left(1);
    }
}

static void before(enum failavoid_kind kind, void *context)
{
    char name[64];
    int sum;
    MPI_Barrier(MPI_COMM_WORLD); /* MPI's own */
    MPI_Allreduce(&rank, &sum, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
    snprintf(name, sizeof name, "before-%s-%d-%s", kind == FAILAVOID_MOVE ? "move" : "checkpoint", rank, (char *)context);
    note(name);
}

static void after(enum failavoid_outcome outcome, void *context)
{
    char name[64];
    snprintf(name, sizeof name, "after-%s-%d-%s", outcome == FAILAVOID_MOVED ? "moved" : "cancelled", rank, (char *)context);
    note(name);
}

/*
 * Pending receives, a window and an unexpected message across the hold: not the barrier's, and they survive it. Without
 * the window where MPI offers none: Open MPI 4.1 has no one-sided operations for threads over TCP alone.
 */
static void pending(int with_window)
{
    int peer = (rank + 1) % size, other = (rank + size - 1) % size, round = 0;
    int *window = NULL, *got = malloc(1 << 20), *sent = malloc(1 << 20);
    MPI_Win win;
    if (with_window)
        MPI_Win_allocate(sizeof(int), sizeof(int), MPI_INFO_NULL, MPI_COMM_WORLD, &window, &win);
    left(0);
    while (go_on()) {
        MPI_Request requests[3];
        int small = round, small_got = -1;
        for (int i = 0; i < 1 << 18; i++)
            sent[i] = round + i + rank;
        if (with_window)
            MPI_Win_fence(0, win);
        MPI_Irecv(got, 1 << 18, MPI_INT, other, 1, MPI_COMM_WORLD, &requests[0]);
        MPI_Isend(sent, 1 << 18, MPI_INT, peer, 1, MPI_COMM_WORLD, &requests[1]);
        MPI_Isend(&small, 1, MPI_INT, peer, 2, MPI_COMM_WORLD, &requests[2]); /* nobody waits for it yet */
        if (with_window)
            MPI_Put(&round, 1, MPI_INT, peer, 0, 1, MPI_INT, win);
        MPI_Barrier(MPI_COMM_WORLD);
        left(1);
        if (with_window)
            MPI_Win_fence(0, win);
        MPI_Recv(&small_got, 1, MPI_INT, other, 2, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        MPI_Waitall(3, requests, MPI_STATUSES_IGNORE);
        for (int i = 0; i < 1 << 18; i++)
            if (got[i] != round + i + other)
                MPI_Abort(MPI_COMM_WORLD, 3);
        if ((with_window && *window != round) || small_got != round)
            MPI_Abort(MPI_COMM_WORLD, 4);
        round++;
    }
    if (with_window)
        MPI_Win_free(&win);
}

/* Two threads, each with a communicator of its own. */
static void *second_thread(void *comm)
{
    int stop = 0;
    while (!stop) {
        MPI_Barrier(*(MPI_Comm *)comm);
        stop = there("stop");
        MPI_Bcast(&stop, 1, MPI_INT, 0, *(MPI_Comm *)comm);
    }
    return NULL;
}

static void threads(void)
{
    pthread_t thread;
    MPI_Comm comm;
    MPI_Comm_dup(MPI_COMM_WORLD, &comm);
    pthread_create(&thread, NULL, second_thread, &comm);
    loop(MPI_COMM_WORLD);
    pthread_join(thread, NULL);
}

int main(int count, char **words)
{
    int provided;
    const char *scenario = words[1];
    folder = words[2];
    MPI_Init_thread(&count, &words, MPI_THREAD_MULTIPLE, &provided);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    if (!strcmp(scenario, "loop"))
        loop(MPI_COMM_WORLD);
    else if (!strcmp(scenario, "derived"))
        loop(derived(words[3]));
    else if (!strcmp(scenario, "part")) {
        MPI_Comm two;
        MPI_Comm_split(MPI_COMM_WORLD, rank / 2, rank, &two);
        loop(two);
    } else if (!strcmp(scenario, "inter"))
        loop(intercommunicator());
    else if (!strcmp(scenario, "two_counts"))
        two_counts();
    else if (!strcmp(scenario, "switched_off"))
        switched_off();
    else if (!strcmp(scenario, "finalize"))
        finalize();
    else if (!strcmp(scenario, "message"))
        message(words[3]);
    else if (!strcmp(scenario, "asking"))
        asking();
    else if (!strcmp(scenario, "callbacks")) {
        failavoid_set_callbacks(before, after, "told");
        loop(MPI_COMM_WORLD);
    } else if (!strcmp(scenario, "pending"))
        pending(1);
    else if (!strcmp(scenario, "pending_messages"))
        pending(0);
    else if (!strcmp(scenario, "threads"))
        threads();
    else
        MPI_Abort(MPI_COMM_WORLD, 2);
    MPI_Finalize();
    return 0;
}
