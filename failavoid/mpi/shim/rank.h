/* One rank: its settings, its page, and the last epoch it has handled. */
#ifndef RANK_H
#define RANK_H

#include <stdbool.h>
#include <stdint.h>

#include "page.h"

enum { GUEST_NAME_MAX = 64 }; /* bytes, with the 0 at the end */

struct settings {
    bool protected; /* FAILAVOID_JOB is set: without it barriers are MPI's own */
    char job[GUEST_NAME_MAX];
    char guest[GUEST_NAME_MAX];
    char folder[4096]; /* of the job's page */
    uint64_t every;
    double limit_s;
};

/* What the environment says. What makes no sense is passed over, and said if `speaks`. */
const struct settings *rank_settings(bool speaks);

/* MPI_Pcontrol: a rank that is switched off brings no notice, but stops with the others. */
void rank_enable(bool enabled);

/* Take no part any more, whatever is pending: MPI ends. */
void rank_deregister(void);

/* Look for the page once a second until it is there; return whether it is. */
bool rank_find_page(void);

/* The open notice that this rank has not handled: its epoch, else 0. free(notice->text) is the caller's if not 0. */
uint64_t rank_look(struct posted *notice);

void rank_handled(uint64_t epoch);

/* One line for the user, on standard error. */
__attribute__((format(printf, 1, 2))) void rank_say(const char *format, ...);

double rank_clock(void); /* seconds */

#endif
