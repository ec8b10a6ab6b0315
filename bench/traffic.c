/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * traffic.c: both ends of every conversation that the benchmark times.
 *
 *     traffic CPU CGROUP_PROCS COMMAND ADDRESS PORT [NUMBER]
 *
 * On one CPU, because waking a process on another costs more than what is measured; moved into a control group
 * before its first socket. Servers say `ready`, clients print one line of numbers. Times are in nanoseconds.
 */
#define _GNU_SOURCE
#include "program.h"

#define STREAM_BYTES (128 * 1024)
#define EVENTS 256
#define BACKLOG 65535

static void say_times(uint64_t *times, long count)
{
    qsort(times, count, sizeof(*times), by_value);
    printf("%lu %lu %lu\n", times[count / 10], times[count / 2], times[count - 1]);
    fflush(stdout);
}

static int listener(void)
{
    int on = 1, fd = checked(socket(AF_INET, SOCK_STREAM, 0), "socket");
    checked(setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)), "SO_REUSEADDR");
    checked(bind(fd, (struct sockaddr *)&peer, sizeof(peer)), "bind");
    checked(listen(fd, BACKLOG), "listen");
    return fd;
}

static int connected(void)
{
    int fd = checked(socket(AF_INET, SOCK_STREAM, 0), "socket");
    checked(connect(fd, (struct sockaddr *)&peer, sizeof(peer)), "connect");
    no_delay(fd);
    return fd;
}

static void round_trip(int fd)
{
    char byte = 'x';
    if (send(fd, &byte, 1, 0) != 1 || recv(fd, &byte, 1, 0) != 1)
        die("round trip");
}

/* One conversation after the other, every byte sent back. */
static void serve_echo(void)
{
    int at = listener();
    char byte;

    say("ready");
    for (;;) {
        int fd = checked(accept(at, NULL, NULL), "accept");
        no_delay(fd);
        while (recv(fd, &byte, 1, 0) == 1 && send(fd, &byte, 1, MSG_NOSIGNAL) == 1)
            ;
        close(fd);
    }
}

/* One conversation after the other, every byte thrown away. */
static void serve_sink(void)
{
    static char buffer[STREAM_BYTES];
    int at = listener();

    say("ready");
    for (;;) {
        int fd = checked(accept(at, NULL, NULL), "accept");
        while (recv(fd, buffer, sizeof(buffer), 0) > 0)
            ;
        close(fd);
    }
}

/* Every conversation at once, bytes sent back. */
static void serve_many(void)
{
    struct epoll_event events[EVENTS], event = {.events = EPOLLIN};
    int at = listener(), epoll = checked(epoll_create1(0), "epoll_create1");
    char byte;

    event.data.fd = at;
    checked(epoll_ctl(epoll, EPOLL_CTL_ADD, at, &event), "epoll_ctl");
    say("ready");
    for (;;) {
        int count = checked(epoll_wait(epoll, events, EVENTS, -1), "epoll_wait");
        for (int i = 0; i < count; i++) {
            int fd = events[i].data.fd;
            if (fd == at) {
                event.data.fd = checked(accept(at, NULL, NULL), "accept");
                no_delay(event.data.fd);
                checked(epoll_ctl(epoll, EPOLL_CTL_ADD, event.data.fd, &event), "epoll_ctl");
            } else if (recv(fd, &byte, 1, 0) != 1 || send(fd, &byte, 1, MSG_NOSIGNAL) != 1) {
                close(fd);
            }
        }
    }
}

static void time_round_trips(int fd, long count)
{
    uint64_t *times = times_allocate(count);

    for (long i = 0; i < count; i++) {
        uint64_t from = now_ns();
        round_trip(fd);
        times[i] = now_ns() - from;
    }
    say_times(times, count);
    free(times);
}

/* Round trips on one connection: so many, or for 0 as many as each line of input says. */
static void client_round_trips(long count)
{
    int fd = connected();

    if (count)
        return time_round_trips(fd, count);
    say("ready");
    for (;;)
        time_round_trips(fd, listen_for_number());
}

/* Connect, send a byte, receive a byte, close. */
static void client_requests(long count)
{
    uint64_t *times = times_allocate(count);

    for (long i = 0; i < count; i++) {
        uint64_t from = now_ns();
        int fd = connected();
        round_trip(fd);
        close(fd);
        times[i] = now_ns() - from;
    }
    say_times(times, count);
}

/* Every datagram sent back to where it came from. */
static void serve_datagrams(void)
{
    int fd = checked(socket(AF_INET, SOCK_DGRAM, 0), "socket");
    struct sockaddr_in from;
    char byte;

    checked(bind(fd, (struct sockaddr *)&peer, sizeof(peer)), "bind");
    say("ready");
    for (;;) {
        socklen_t size = sizeof(from);
        if (recvfrom(fd, &byte, 1, 0, (struct sockaddr *)&from, &size) == 1)
            sendto(fd, &byte, 1, 0, (struct sockaddr *)&from, size);
    }
}

static int datagram_socket(void)
{
    int fd = checked(socket(AF_INET, SOCK_DGRAM, 0), "socket");
    checked(connect(fd, (struct sockaddr *)&peer, sizeof(peer)), "connect");
    return fd;
}

/* A datagram and the one that answers it, on one socket. */
static void client_datagrams(long count)
{
    int fd = datagram_socket();

    round_trip(fd);
    time_round_trips(fd, count);
}

/* The same, each from a socket of its own. */
static void client_questions(long count)
{
    uint64_t *times = times_allocate(count);

    for (long i = 0; i < count; i++) {
        uint64_t from = now_ns();
        int fd = datagram_socket();
        round_trip(fd);
        close(fd);
        times[i] = now_ns() - from;
    }
    say_times(times, count);
}

/* One conversation from `port`, its end leaving nothing behind; 0, or the error that it met. */
static int converse_from(long port, in_port_t to)
{
    struct linger reset = {.l_onoff = 1};
    struct sockaddr_in own = {.sin_family = AF_INET, .sin_port = htons(port)}, there = peer;
    int on = 1, failed = 0, fd = checked(socket(AF_INET, SOCK_STREAM, 0), "socket");

    there.sin_port = to;
    checked(setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)), "SO_REUSEADDR");
    checked(setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset)), "SO_LINGER");
    checked(bind(fd, (struct sockaddr *)&own, sizeof(own)), "bind");
    if (connect(fd, (struct sockaddr *)&there, sizeof(there)))
        failed = errno;
    else
        round_trip(fd);
    close(fd);
    return failed;
}

/*
 * One source port that many use in turn: at each line of input a conversation with our port, and one with the port of
 * that number, which is not ours. Prints the errors met.
 */
static void client_borrowing(long port)
{
    say("ready");
    for (;;) {
        long other = listen_for_number();
        int own = converse_from(port, peer.sin_port);
        printf("%d %d\n", own, converse_from(port, htons(other)));
        fflush(stdout);
    }
}

/* As much as goes through in so many milliseconds; prints bytes and nanoseconds. */
static void client_stream(long milliseconds)
{
    static char buffer[STREAM_BYTES];
    int fd = connected();
    uint64_t sent = 0, from = now_ns(), until = from + milliseconds * 1000000ull;

    while (now_ns() < until)
        sent += checked(send(fd, buffer, sizeof(buffer), 0), "send");
    printf("%lu %lu\n", sent, now_ns() - from);
}

/* As many SYNs as each line of input says, each from a socket of its own that is closed at once. */
static void client_openings(void)
{
    say("ready");
    for (;;) {
        long count = listen_for_number(), sent = 0, refused = 0;
        for (long i = 0; i < count; i++) {
            int fd = checked(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), "socket");
            if (connect(fd, (struct sockaddr *)&peer, sizeof(peer)) == 0 || errno == EINPROGRESS)
                sent++;
            else if (errno == EPERM)
                refused++;
            else
                die("connect");
            close(fd);
        }
        printf("%ld %ld\n", sent, refused);
        fflush(stdout);
    }
}

/* As many attempts to send as each line of input says, on one connection that was established before. */
static void client_pushes(void)
{
    int fd = connected(), size = 16 << 20;

    checked(setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size)), "SO_SNDBUF");
    round_trip(fd);
    say("ready");
    for (;;) {
        long count = listen_for_number(), sent = 0;
        for (long i = 0; i < count; i++)
            sent += send(fd, "x", 1, MSG_DONTWAIT | MSG_NOSIGNAL) == 1;
        printf("%ld\n", sent);
        fflush(stdout);
    }
}

/* Opens `count` connections and holds them; each line of input asks for round trips, each on another of them. */
static void client_many(long count)
{
    struct linger reset = {.l_onoff = 1};
    int *held = calloc(count, sizeof(*held));
    uint64_t state = 88172645463325252ull;

    if (!held)
        die("no room for so many connections");
    for (long i = 0; i < count; i++) {
        held[i] = connected();
        checked(setsockopt(held[i], SOL_SOCKET, SO_LINGER, &reset, sizeof(reset)), "SO_LINGER");
    }
    say("ready");
    for (;;) {
        long trips = listen_for_number();
        uint64_t *times = times_allocate(trips);
        for (long i = 0; i < trips; i++) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            uint64_t from = now_ns();
            round_trip(held[state % count]);
            times[i] = now_ns() - from;
        }
        say_times(times, trips);
        free(times);
    }
}

int main(int argc, char **argv)
{
    long number = begin("traffic", argc, argv);
    const char *command = argv[3];

    if (!strcmp(command, "serve-echo"))
        serve_echo();
    else if (!strcmp(command, "serve-sink"))
        serve_sink();
    else if (!strcmp(command, "serve-many"))
        serve_many();
    else if (!strcmp(command, "serve-datagrams"))
        serve_datagrams();
    else if (!strcmp(command, "round-trips"))
        client_round_trips(number);
    else if (!strcmp(command, "requests"))
        client_requests(number);
    else if (!strcmp(command, "datagrams"))
        client_datagrams(number);
    else if (!strcmp(command, "questions"))
        client_questions(number);
    else if (!strcmp(command, "borrowing"))
        client_borrowing(number);
    else if (!strcmp(command, "stream"))
        client_stream(number);
    else if (!strcmp(command, "openings"))
        client_openings();
    else if (!strcmp(command, "pushes"))
        client_pushes();
    else if (!strcmp(command, "many"))
        client_many(number);
    else {
        fprintf(stderr, "traffic: unknown command `%s`\n", command);
        return 2;
    }
    return 0;
}
