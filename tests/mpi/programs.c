/* programs.py in C: `programs SCENARIO FOLDER [ARGUMENT]`, the same words in FOLDER/do, and some more. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <mpi.h>
#include <pthread.h>
#include <stdatomic.h>
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

enum { WORD = 16, LARGE = 1 << 18 };

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

/* The word that says what all ranks do next. */
static const char *turn(void)
{
    static char word[WORD + 1];
    usleep(2000);
    if (rank == 0) {
        char path[4096], line[WORD + 1] = "";
        snprintf(path, sizeof path, "%s/do", folder);
        FILE *file = fopen(path, "r");
        if (!file || fscanf(file, "%16s", line) != 1)
            strcpy(line, "world");
        if (file)
            fclose(file);
        snprintf(word, sizeof word, "%-*s", WORD, line);
    }
    MPI_Bcast(word, WORD, MPI_CHAR, 0, MPI_COMM_WORLD);
    word[strcspn(word, " ")] = 0;
    return word;
}

static MPI_Comm inter(void)
{
    MPI_Comm half, inter;
    MPI_Comm_split(MPI_COMM_WORLD, rank % 2, rank, &half);
    MPI_Intercomm_create(half, 0, MPI_COMM_WORLD, (rank + 1) % 2, 0, &inter);
    return inter;
}

static MPI_Comm make(const char *what)
{
    MPI_Comm made = MPI_COMM_NULL;
    MPI_Group group;
    int none = 0, index[64], edges[64] = {0};
    MPI_Comm_group(MPI_COMM_WORLD, &group);
    for (int i = 0; i < size; i++)
        index[i] = i + 1;
    if (!strcmp(what, "dup"))
        MPI_Comm_dup(MPI_COMM_WORLD, &made);
    else if (!strcmp(what, "split"))
        MPI_Comm_split(MPI_COMM_WORLD, 0, -rank, &made);
    else if (!strcmp(what, "create"))
        MPI_Comm_create(MPI_COMM_WORLD, group, &made);
    else if (!strcmp(what, "create_group"))
        MPI_Comm_create_group(MPI_COMM_WORLD, group, 0, &made);
    else if (!strcmp(what, "cart"))
        MPI_Cart_create(MPI_COMM_WORLD, 1, &size, &none, 0, &made);
    else if (!strcmp(what, "graph"))
        MPI_Graph_create(MPI_COMM_WORLD, size, index, edges, 0, &made);
    else if (!strcmp(what, "merge"))
        MPI_Intercomm_merge(inter(), rank % 2, &made);
    else if (!strcmp(what, "part"))
        MPI_Comm_split(MPI_COMM_WORLD, rank / 2, rank, &made);
    else if (!strcmp(what, "inter"))
        made = inter();
    else
        MPI_Abort(MPI_COMM_WORLD, 2);
    return made;
}

/* A communicator, made when it is wanted first. */
static MPI_Comm made(const char *what)
{
    static struct {
        char what[WORD + 1];
        MPI_Comm comm;
    } all[WORD];
    int i = 0;
    while (*all[i].what && strcmp(all[i].what, what))
        i++;
    if (!*all[i].what) {
        all[i].comm = make(what);
        strcpy(all[i].what, what);
    }
    return all[i].comm;
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

/* Leave MPI, and stay until the file FOLDER/end is there. */
static void finalize(void)
{
    char name[64];
    MPI_Finalize();
    snprintf(name, sizeof name, "finalized-%d", getpid());
    note(name);
    while (!there("end"))
        usleep(10000);
    exit(0);
}

static MPI_Win win = MPI_WIN_NULL;

/*
 * Messages under way across the barrier, which are not the barrier's: large ones both ways, and one that nobody waits for
 * yet; with a window also one-sided operations. Every one is looked at.
 */
static void pending(int with_window)
{
    static int round, *window, *got, *sent;
    MPI_Request requests[3];
    int peer = (rank + 1) % size, other = (rank + size - 1) % size, small = round, small_got = -1;
    if (!got) {
        got = malloc(LARGE * sizeof *got);
        sent = malloc(LARGE * sizeof *sent);
    }
    if (with_window && !window)
        MPI_Win_allocate(LARGE * sizeof *window, sizeof *window, MPI_INFO_NULL, MPI_COMM_WORLD, &window, &win);
    for (int i = 0; i < LARGE; i++)
        sent[i] = round + i + rank;
    if (with_window)
        MPI_Win_fence(0, win);
    MPI_Irecv(got, LARGE, MPI_INT, other, 1, MPI_COMM_WORLD, &requests[0]);
    MPI_Isend(sent, LARGE, MPI_INT, peer, 1, MPI_COMM_WORLD, &requests[1]);
    MPI_Isend(&small, 1, MPI_INT, peer, 2, MPI_COMM_WORLD, &requests[2]);
    if (with_window)
        MPI_Put(sent, LARGE, MPI_INT, peer, 0, LARGE, MPI_INT, win);
    MPI_Barrier(MPI_COMM_WORLD);
    if (with_window)
        MPI_Win_fence(0, win);
    MPI_Recv(&small_got, 1, MPI_INT, other, 2, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    MPI_Waitall(3, requests, MPI_STATUSES_IGNORE);
    for (int i = 0; i < LARGE; i++)
        if (got[i] != round + i + other || (with_window && window[i] != round + i + other))
            MPI_Abort(MPI_COMM_WORLD, 3);
    if (small_got != round)
        MPI_Abort(MPI_COMM_WORLD, 4);
    round++;
}

static int barrier(const char *what)
{
    if (!strcmp(what, "world"))
        MPI_Barrier(MPI_COMM_WORLD);
    else if (!strcmp(what, "nothing")) {
        note("nothing");
        return 0;
    } else if (!strcmp(what, "off") || !strcmp(what, "on")) {
        MPI_Pcontrol(!strcmp(what, "on"));
        MPI_Barrier(MPI_COMM_WORLD);
    } else if (!strcmp(what, "asking")) { /* no barrier but where the wrapper says so; that one counts as a million */
        int flag;
        failavoid_should_migrate(&flag);
        if (flag) {
            MPI_Barrier(MPI_COMM_WORLD);
            return 1000000;
        }
    } else if (!strcmp(what, "callbacks")) {
        failavoid_set_callbacks(before, after, "told");
        MPI_Barrier(MPI_COMM_WORLD);
        failavoid_set_callbacks(NULL, NULL, NULL);
    } else if (!strcmp(what, "two_counts")) {
        MPI_Barrier(MPI_COMM_WORLD);
        MPI_Barrier(made("dup"));
        MPI_Barrier(made("dup"));
        return 3;
    } else if (!strcmp(what, "pending"))
        pending(0);
    else if (!strcmp(what, "one_sided"))
        pending(1);
    else
        MPI_Barrier(made(what));
    return 1;
}

static void loop(void)
{
    const char *what;
    left(0);
    while (strcmp(what = turn(), "stop")) {
        if (!strcmp(what, "finalize"))
            finalize();
        left((uint64_t)barrier(what));
    }
    if (win != MPI_WIN_NULL)
        MPI_Win_free(&win);
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
    loop();
    if (rank == size - 1)
        pthread_join(thread, NULL);
    if (rank == 0)
        MPI_Recv(text, sizeof text, MPI_CHAR, size - 1, atoi(tag), MPI_COMM_WORLD, MPI_STATUS_IGNORE);
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
    loop();
    note("stop");
    pthread_join(thread, NULL);
}

/*
 * As `loop`, while threads of the even ranks send a number round, which each of them checks and counts up. The odd ranks may
 * be of another program.
 */
static atomic_int ended;

static void *send_round(void *nothing)
{
    int next = (rank + 2) % size, last = (rank + size - 2) % size, stations = size / 2;
    int expected = rank ? rank / 2 - 1 : stations - 1, message[2] = {0, 0}; /* the number, and whether it is the last */
    do {
        if (rank == 0) {
            usleep(1000);
            message[1] = ended;
            MPI_Send(message, 2, MPI_INT, next, 7, MPI_COMM_WORLD);
        }
        MPI_Recv(message, 2, MPI_INT, last, 7, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        if (message[0]++ != expected)
            MPI_Abort(MPI_COMM_WORLD, 5);
        expected += stations;
        if (rank)
            MPI_Send(message, 2, MPI_INT, next, 7, MPI_COMM_WORLD);
    } while (!message[1]);
    return nothing;
}

static void ring(void)
{
    pthread_t thread;
    pthread_create(&thread, NULL, send_round, NULL);
    loop();
    ended = 1;
    pthread_join(thread, NULL);
}

int main(int count, char **words)
{
    int provided;
    const char *scenario = words[1];
    int alone = !strcmp(scenario, "alone"); /* one thread: Open MPI 4.1 has no one-sided operations over TCP for several */
    folder = words[2];
    MPI_Init_thread(&count, &words, alone ? MPI_THREAD_FUNNELED : MPI_THREAD_MULTIPLE, &provided);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    if (alone || !strcmp(scenario, "loop"))
        loop();
    else if (!strcmp(scenario, "once"))
        MPI_Barrier(MPI_COMM_WORLD);
    else if (!strcmp(scenario, "message"))
        message(words[3]);
    else if (!strcmp(scenario, "threads"))
        threads();
    else if (!strcmp(scenario, "ring"))
        ring();
    else
        MPI_Abort(MPI_COMM_WORLD, 2);
    MPI_Finalize();
    return 0;
}
