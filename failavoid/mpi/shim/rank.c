#define _GNU_SOURCE
#include "rank.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const double LOOK_AGAIN_S = 1; /* for a page that is not there yet */
static const double LIMIT_S = 900;

static struct settings settings;
static atomic_bool enabled = true, gone, have_page;
static _Atomic uint64_t handled;
static pthread_mutex_t once = PTHREAD_MUTEX_INITIALIZER;

static const char *variable(const char *name, const char *otherwise)
{
    const char *value = getenv(name);
    return value && *value ? value : otherwise;
}

static double number(const char *name, double least, double otherwise, bool speaks)
{
    const char *text = variable(name, NULL);
    if (!text)
        return otherwise;
    char *end;
    double value = strtod(text, &end);
    if (!*end && value >= least && value < 1e15)
        return value;
    if (speaks)
        rank_say("the environment variable %s is '%s'; give a number, at least 1: going on with %g", name, text,
                 otherwise);
    return otherwise;
}

static void read_settings(bool speaks)
{
    char host[256] = "";
    gethostname(host, sizeof host - 1);
    *strchrnul(host, '.') = 0;
    snprintf(settings.job, sizeof settings.job, "%s", variable("FAILAVOID_JOB", ""));
    snprintf(settings.guest, sizeof settings.guest, "%s", variable("FAILAVOID_GUEST", host));
    snprintf(settings.folder, sizeof settings.folder, "%s/jobs/%s", variable("FAILAVOID_RUN_DIR", "/run/failavoid"),
             settings.job);
    settings.protected = *settings.job;
    settings.every = (uint64_t)number("FAILAVOID_EVERY", 1, 1, speaks);
    settings.limit_s = number("FAILAVOID_LIMIT_S", 1e-9, LIMIT_S, speaks);
}

const struct settings *rank_settings(bool speaks)
{
    static bool read;
    pthread_mutex_lock(&once);
    if (!read)
        read_settings(speaks);
    read = true;
    pthread_mutex_unlock(&once);
    return &settings;
}

void rank_enable(bool on)
{
    enabled = on;
}

void rank_deregister(void)
{
    pthread_mutex_lock(&once);
    gone = true;
    have_page = false;
    slot_deregister();
    pthread_mutex_unlock(&once);
}

bool rank_find_page(void)
{
    static double next_look;
    if (have_page || gone || !settings.protected)
        return have_page;
    pthread_mutex_lock(&once);
    if (!have_page && !gone && rank_clock() >= next_look) {
        have_page = page_open(settings.folder);
        next_look = rank_clock() + LOOK_AGAIN_S;
    }
    pthread_mutex_unlock(&once);
    return have_page;
}

uint64_t rank_look(struct posted *notice)
{
    if (!enabled || !rank_find_page() || page_epoch() <= handled || !page_read(notice))
        return 0;
    if (notice->epoch <= handled || notice->done >= notice->epoch || notice->cancelled >= notice->epoch) {
        rank_handled(notice->epoch);
        free(notice->text);
        return 0;
    }
    return notice->epoch;
}

void rank_handled(uint64_t epoch)
{
    uint64_t before = handled;
    while (before < epoch && !atomic_compare_exchange_weak(&handled, &before, epoch))
        ;
}

void rank_say(const char *format, ...)
{
    char *line = NULL;
    size_t length;
    FILE *text = open_memstream(&line, &length); /* so that it leaves in one piece */
    if (!text)
        return;
    fprintf(text, *settings.job ? "failavoid: job %s: " : "failavoid: ", settings.job);
    va_list arguments;
    va_start(arguments, format);
    vfprintf(text, format, arguments);
    va_end(arguments);
    fputc('\n', text);
    fclose(text);
    if (write(STDERR_FILENO, line, length) < 0) {
        /* nobody listens */
    }
    free(line);
}

double rank_clock(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}
