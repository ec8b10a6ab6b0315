/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * http.c: asks a web server, on so many connections at once, each for the next answer as soon as it has the last.
 *
 *     http CPU CGROUP_PROCS kept|fresh ADDRESS PORT CONNECTIONS
 *
 * `fresh` opens a connection for every request. Says `ready`, then does what each line of input says:
 *
 *     MILLISECONDS   asks for so long; prints the requests answered with 200, those that were not, and in nanoseconds
 *                    how long it took and the median and the 99th percentile of the times of the former
 *     -STATUS        asks on one connection until the answer has that status; prints when, on the monotonic clock
 */
#define _GNU_SOURCE
#include "program.h"

#define EVENTS 64
#define ANSWER_BYTES 8192
#define ANSWER_S 5
#define TIMES_MAX (1 << 20)

static const char REQUEST[] = "GET /v1/items HTTP/1.1\r\nHost: bench\r\n\r\n";

struct conversation {
    int fd; /* -1: there is none */
    int is_waiting;
    size_t length;
    uint64_t asked_at;
    char answer[ANSWER_BYTES + 1];
};

struct tally {
    long answered, failed;
    uint64_t *times;
};

static int is_fresh;

static void leave(struct conversation *one)
{
    if (one->fd >= 0)
        close(one->fd);
    one->fd = -1;
    one->is_waiting = 0;
}

static int opened(struct conversation *one)
{
    struct timeval patience = {.tv_sec = ANSWER_S};

    one->fd = checked(socket(AF_INET, SOCK_STREAM, 0), "socket");
    checked(setsockopt(one->fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience)), "SO_SNDTIMEO");
    checked(setsockopt(one->fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)), "SO_RCVTIMEO");
    if (connect(one->fd, (struct sockaddr *)&peer, sizeof(peer)) == 0) {
        no_delay(one->fd);
        return 1;
    }
    leave(one);
    return 0;
}

/* Whether the request is on its way. */
static int asked(struct conversation *one, int epoll)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = one};

    one->asked_at = now_ns();
    if (one->fd < 0) {
        if (!opened(one))
            return 0;
        if (epoll >= 0)
            checked(epoll_ctl(epoll, EPOLL_CTL_ADD, one->fd, &event), "epoll_ctl");
    }
    one->length = 0;
    one->is_waiting = send(one->fd, REQUEST, sizeof(REQUEST) - 1, MSG_NOSIGNAL) == sizeof(REQUEST) - 1;
    if (!one->is_waiting)
        leave(one);
    return one->is_waiting;
}

/* Bytes of the whole answer; 0 while its head is not there. */
static size_t answer_size(const struct conversation *one)
{
    const char *end = strstr(one->answer, "\r\n\r\n");
    const char *length = end ? strcasestr(one->answer, "\r\ncontent-length:") : NULL;

    if (!end)
        return 0;
    return end + 4 - one->answer + (length && length < end ? atol(length + 17) : 0);
}

/* Takes what has come: the status of the answer, 0 when it is not complete, -1 when it will never be. */
static int heard(struct conversation *one)
{
    ssize_t more = recv(one->fd, one->answer + one->length, ANSWER_BYTES - one->length, 0);
    size_t size;

    if (more <= 0)
        return -1;
    one->length += more;
    one->answer[one->length] = 0;
    size = answer_size(one);
    if (!size || one->length < size)
        return one->length == ANSWER_BYTES ? -1 : 0;
    one->is_waiting = 0;
    return one->length == size && !strncmp(one->answer, "HTTP/1.1 ", 9) ? atoi(one->answer + 9) : -1;
}

static void count(struct tally *tally, struct conversation *one, int status)
{
    if (status != 200) {
        tally->failed++;
    } else {
        if (tally->answered < TIMES_MAX)
            tally->times[tally->answered] = now_ns() - one->asked_at;
        tally->answered++;
    }
    if (status < 0 || is_fresh)
        leave(one);
}

/* Asks until it is time, and waits for the answers that are due then; how many never came. */
static long ask_until(uint64_t until, struct conversation *all, long connections, int epoll, struct tally *tally)
{
    struct epoll_event events[EVENTS];
    long waiting = 0;

    for (;;) {
        for (long i = 0; i < connections && now_ns() < until; i++)
            while (!all[i].is_waiting && now_ns() < until) {
                if (asked(&all[i], epoll))
                    waiting++;
                else
                    tally->failed++;
            }
        int ready = waiting ? checked(epoll_wait(epoll, events, EVENTS, ANSWER_S * 1000), "epoll_wait") : 0;
        if (!ready)
            return waiting;
        for (int i = 0; i < ready; i++) {
            struct conversation *one = events[i].data.ptr;
            int was_waiting = one->is_waiting, status = heard(one);
            if (!was_waiting) {
                leave(one); /* the server ended it between two requests, as it may */
            } else if (status) {
                waiting--;
                count(tally, one, status);
                if (!one->is_waiting && now_ns() < until) {
                    if (asked(one, epoll))
                        waiting++;
                    else
                        tally->failed++;
                }
            }
        }
    }
}

static void ask_for(long milliseconds, struct conversation *all, long connections, int epoll)
{
    struct tally tally = {.times = times_allocate(TIMES_MAX)};
    uint64_t from = now_ns(), took;
    long lost = ask_until(from + milliseconds * 1000000ull, all, connections, epoll, &tally), timed;

    took = now_ns() - from;
    for (long i = 0; lost && i < connections; i++)
        if (all[i].is_waiting)
            leave(&all[i]);
    timed = tally.answered < TIMES_MAX ? tally.answered : TIMES_MAX;
    qsort(tally.times, timed, sizeof(*tally.times), by_value);
    printf("%ld %ld %lu %lu %lu\n", tally.answered, tally.failed + lost, took, timed ? tally.times[timed / 2] : 0,
           timed ? tally.times[timed * 99 / 100] : 0);
    fflush(stdout);
    free(tally.times);
}

static void ask_for_status(long wanted, struct conversation *one)
{
    int status = 0;

    while (status != wanted) {
        if (!asked(one, -1))
            die("asking");
        do
            status = heard(one);
        while (!status);
        if (status < 0)
            die("the answer");
    }
    printf("%lu\n", now_ns());
    fflush(stdout);
}

int main(int argc, char **argv)
{
    long connections = begin("http", argc, argv);
    struct conversation *all = calloc(connections, sizeof(*all));
    int epoll = checked(epoll_create1(0), "epoll_create1");

    if (!all || !connections)
        die("no room for so many connections");
    is_fresh = !strcmp(argv[3], "fresh");
    for (long i = 0; i < connections; i++)
        all[i].fd = -1;
    say("ready");
    for (;;) {
        long order = listen_for_number();
        if (order < 0)
            ask_for_status(-order, &all[0]);
        else
            ask_for(order, all, connections, epoll);
    }
}
