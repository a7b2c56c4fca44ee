/* What a rank does at an eligible barrier. The steps, their order and what goes over the wire are those of
 * failavoid/mpi/protocol.py: ranks with either wrapper may be of one job. */
#define _GNU_SOURCE
#include "barrier.h"

#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "rank.h"

/* of a rank that waits: on an emulated processor waking up costs, and the other guests move meanwhile */
static const struct timespec POLL = {.tv_nsec = 50 * 1000 * 1000};

struct callbacks callbacks;
static _Atomic uint64_t asked;   /* the last epoch that the application knows of because it asked */
static _Thread_local bool inside;

/* What each rank brings to the agreement. */
struct record {
    uint64_t word;
    char guest[GUEST_NAME_MAX];
};

/* What all ranks agree on; its `shared` bytes are told by one of them. */
struct agreement {
    uint64_t epoch;
    int ranks;
    struct record *records; /* of each rank */
    unsigned char *shared;  /* the kind of the notice, then for each rank whether its guest is affected */
    unsigned char *affected;
    int leader; /* the lowest affected rank, or -1 */
    int count;  /* of affected ranks */
};

bool in_barrier(void)
{
    return inside;
}

/* Allgather of every rank's word and guest; the lowest rank that brought this epoch tells which ranks are affected, by
 * the list it had read *before* the barrier: guests see a notice at different moments. */
static int agree(const struct mpi *mpi, handle comm, int me, uint64_t word, const struct posted *notice,
                 struct agreement *agreed)
{
    struct record mine = {.word = word};
    memcpy(mine.guest, rank_settings(false)->guest, sizeof mine.guest);
    int error = mpi->Allgather(&mine, sizeof mine, mpi->byte, agreed->records, sizeof mine, mpi->byte, comm);
    if (error)
        return error;
    int teller = 0;
    while (agreed->records[teller].word != agreed->epoch)
        teller++;
    if (me == teller) {
        agreed->shared[0] = (unsigned char)notice->kind;
        for (int rank = 0; rank < agreed->ranks; rank++) {
            char line[GUEST_NAME_MAX + 2];
            snprintf(line, sizeof line, "\n%.*s\n", GUEST_NAME_MAX - 1, agreed->records[rank].guest);
            agreed->affected[rank] = strstr(strchr(notice->text, '\n') + 1, line) != NULL;
        }
    }
    error = mpi->Bcast(agreed->shared, agreed->ranks + 1, mpi->byte, teller, comm);
    agreed->leader = -1;
    for (int rank = agreed->ranks - 1; rank >= 0; rank--) {
        if (agreed->affected[rank]) {
            agreed->count++;
            agreed->leader = rank;
        }
    }
    return error;
}

/* Wait outside MPI for the agent's word on this guest's page. */
static enum failavoid_outcome sleep_until_ended(uint64_t epoch)
{
    if (!rank_find_page())
        return FAILAVOID_NO_PAGE;
    double deadline = rank_clock() + rank_settings(false)->limit_s;
    enum failavoid_outcome outcome;
    slot_stop(epoch);
    for (;;) {
        if (page_done() >= epoch)
            outcome = FAILAVOID_MOVED;
        else if (page_cancelled() >= epoch)
            outcome = FAILAVOID_CANCELLED;
        else if (rank_clock() >= deadline)
            outcome = FAILAVOID_LIMIT;
        else {
            nanosleep(&POLL, NULL);
            continue;
        }
        break;
    }
    slot_resume();
    return outcome;
}

/* The leader's word, for which the others wait asleep; they send nothing before it has come. */
static int tell(const struct mpi *mpi, handle comm, int leader, unsigned char *outcome)
{
    handle request = NULL;
    char status[256]; /* greater than any MPI's */
    int told = 0;
    int error = mpi->Ibcast(outcome, 1, mpi->byte, leader, comm, &request);
    while (!error && !(error = mpi->Test(&request, &told, status)) && !told)
        nanosleep(&POLL, NULL);
    return error;
}

/* The names of the affected guests, each once, in the order of their ranks; free it. */
static char *names(const struct agreement *agreed, int *guests)
{
    char *text = calloc((size_t)agreed->count + 1, GUEST_NAME_MAX + 2);
    char *end = text;
    *guests = 0;
    for (int rank = 0; text && rank < agreed->ranks; rank++) {
        bool again = !agreed->affected[rank];
        for (int before = 0; before < rank && !again; before++)
            again = agreed->affected[before] && !strcmp(agreed->records[before].guest, agreed->records[rank].guest);
        if (!again)
            end += sprintf(end, "%s%s", (*guests)++ ? ", " : "", agreed->records[rank].guest);
    }
    return text;
}

/* " from HOST to HOST", where the page says so. */
static void way(uint64_t epoch, char *text, size_t size)
{
    struct posted posted;
    *text = 0;
    if (!rank_find_page() || !page_read(&posted))
        return;
    char *source = posted.text, *destination = strchr(source, '\n');
    if (posted.epoch == epoch && destination && destination > source && destination[1] != '\n') {
        *destination++ = 0;
        *strchrnul(destination, '\n') = 0;
        snprintf(text, size, " from %s to %s", source, destination);
    }
    free(posted.text);
}

static void say_held(const struct agreement *agreed, enum failavoid_outcome outcome, double seconds)
{
    int guests;
    char *who = names(agreed, &guests);
    char how[400];
    if (outcome == FAILAVOID_MOVED) {
        char from_to[300];
        way(agreed->epoch, from_to, sizeof from_to);
        snprintf(how, sizeof how, "moved%s", from_to);
    } else if (outcome == FAILAVOID_CANCELLED)
        snprintf(how, sizeof how, "did not move (cancelled)");
    else if (outcome == FAILAVOID_LIMIT)
        snprintf(how, sizeof how, "did not move within %g s (FAILAVOID_LIMIT_S), the ranks run on",
                 rank_settings(false)->limit_s);
    else
        snprintf(how, sizeof how, "may move now; without a page the ranks can't wait for it");
    rank_say("guest%s %s %s; %d rank%s stopped for %.2f s (epoch %llu)", guests > 1 ? "s" : "", who ? who : "", how,
             agreed->count, agreed->count > 1 ? "s" : "", seconds, (unsigned long long)agreed->epoch);
    free(who);
}

/* Nothing moves: the application is told, and the agent what came of it. */
static void checkpoint(uint64_t epoch, bool speaks, double began)
{
    bool known = callbacks.before || asked >= epoch;
    if (known && rank_find_page())
        slot_checkpointed(epoch);
    if (speaks && known)
        rank_say("the program was told to write a checkpoint and took %.2f s for it (epoch %llu)",
                 rank_clock() - began, (unsigned long long)epoch);
    else if (speaks)
        rank_say("a checkpoint is asked for, but the program has no callback for it (epoch %llu)",
                 (unsigned long long)epoch);
    rank_handled(epoch);
}

/* Affected ranks stop until their guests have moved; the others wait for the leader's word, and send nothing. */
static int stop(const struct mpi *mpi, handle comm, int me, const struct agreement *agreed, double began)
{
    unsigned char told = 0;
    enum failavoid_outcome own = 0;
    if (agreed->affected[me])
        told = (unsigned char)(own = sleep_until_ended(agreed->epoch));
    int error = tell(mpi, comm, agreed->leader, &told);
    if (error)
        return error;
    enum failavoid_outcome outcome = own ? own : told; /* an affected rank's own page counts for itself */
    if (outcome == FAILAVOID_MOVED || outcome == FAILAVOID_CANCELLED)
        rank_handled(agreed->epoch);
    if (me == agreed->leader)
        say_held(agreed, outcome, rank_clock() - began);
    if (callbacks.after)
        callbacks.after(told, callbacks.context);
    return 0;
}

static int hold(const struct mpi *mpi, handle comm, uint64_t epoch, uint64_t word, const struct posted *notice)
{
    int me = 0, error;
    double began = rank_clock();
    struct agreement agreed = {.epoch = epoch};
    if ((error = mpi->Comm_rank(comm, &me)) || (error = mpi->Comm_size(comm, &agreed.ranks)))
        return error;
    agreed.records = calloc((size_t)agreed.ranks, sizeof *agreed.records);
    agreed.shared = calloc((size_t)agreed.ranks + 1, 1);
    if (!agreed.records || !agreed.shared) {
        rank_say("no memory is left to agree on a notice");
        abort(); /* the other ranks would wait for this one for ever */
    }
    agreed.affected = agreed.shared + 1;
    error = agree(mpi, comm, me, word, notice, &agreed);
    enum failavoid_kind kind = agreed.shared[0];
    if (!error && kind == FAILAVOID_MOVE && agreed.leader < 0)
        rank_handled(epoch); /* the affected guests run none of these ranks */
    else if (!error) {
        if (callbacks.before)
            callbacks.before(kind, callbacks.context);
        if (kind == FAILAVOID_CHECKPOINT)
            checkpoint(epoch, me == 0, began);
        else
            error = stop(mpi, comm, me, &agreed, began);
    }
    free(agreed.shared);
    free(agreed.records);
    return error;
}

/* The check *is* the barrier: nobody knows the highest word before everybody has entered. */
int barrier(const struct mpi *mpi, handle comm)
{
    struct posted notice = {.text = NULL};
    uint64_t word = rank_look(&notice), epoch = 0;
    int error = mpi->Allreduce(&word, &epoch, 1, mpi->uint64, mpi->max, comm);
    if (!error && epoch) {
        inside = true;
        error = hold(mpi, comm, epoch, word, &notice);
        inside = false;
    }
    if (word)
        free(notice.text);
    return error;
}

int ask(const struct mpi *mpi, handle comm, bool *noticed)
{
    struct posted notice;
    uint64_t word = rank_look(&notice), epoch = 0;
    if (word)
        free(notice.text);
    int error = mpi->Allreduce(&word, &epoch, 1, mpi->uint64, mpi->max, comm);
    if (epoch > asked)
        asked = epoch;
    *noticed = epoch != 0;
    return error;
}
