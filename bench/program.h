/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * program.h: what the programs of the benchmark have in common.
 *
 * Each is started as `PROGRAM CPU CGROUP_PROCS COMMAND ADDRESS PORT [NUMBER]`, stays on one CPU, or on any for a
 * negative one, and moves into its control group before its first socket.
 */
#ifndef PROGRAM_H
#define PROGRAM_H

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static const char *program;
static struct sockaddr_in peer;

static void die(const char *what)
{
    fprintf(stderr, "%s: %s: %s\n", program, what, strerror(errno));
    exit(1);
}

static int64_t checked(int64_t result, const char *what)
{
    if (result < 0)
        die(what);
    return result;
}

static uint64_t now_ns(void)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec * 1000000000ull + at.tv_nsec;
}

static void say(const char *line)
{
    puts(line);
    fflush(stdout);
}

/* The next number that the benchmark writes to our input; ends the process when there is none. */
static long listen_for_number(void)
{
    char line[64];
    if (!fgets(line, sizeof(line), stdin))
        exit(0);
    return atol(line);
}

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static uint64_t *times_allocate(long count)
{
    uint64_t *times = count > 0 ? calloc(count, sizeof(*times)) : NULL;
    if (!times)
        die("no room for so many times");
    memset(times, 0xff, count * sizeof(*times)); /* no page fault while the clock runs */
    return times;
}

static void no_delay(int fd)
{
    int on = 1;
    checked(setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)), "TCP_NODELAY");
}

static void stay_on(int cpu)
{
    cpu_set_t one;

    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    checked(sched_setaffinity(0, sizeof(one), &one), "sched_setaffinity");
}

static void settle(int cpu, const char *cgroup_procs)
{
    struct rlimit files;

    checked(prctl(PR_SET_PDEATHSIG, SIGKILL), "prctl");
    if (cpu >= 0)
        stay_on(cpu);
    if (*cgroup_procs) {
        int fd = checked(open(cgroup_procs, O_WRONLY), cgroup_procs);
        checked(write(fd, "0", 1), cgroup_procs);
        close(fd);
    }
    checked(getrlimit(RLIMIT_NOFILE, &files), "getrlimit");
    files.rlim_cur = files.rlim_max;
    checked(setrlimit(RLIMIT_NOFILE, &files), "setrlimit");
}

/* Settles as the arguments say; NUMBER, or 0. */
static long begin(const char *name, int argc, char **argv)
{
    program = name;
    if (argc < 6) {
        fprintf(stderr, "usage: %s CPU CGROUP_PROCS COMMAND ADDRESS PORT [NUMBER]\n", name);
        exit(2);
    }
    settle(atoi(argv[1]), argv[2]);
    peer.sin_family = AF_INET;
    peer.sin_port = htons(atoi(argv[5]));
    if (inet_pton(AF_INET, argv[4], &peer.sin_addr) != 1)
        die("ADDRESS");
    return argc > 6 ? atol(argv[6]) : 0;
}

#endif
