/* What a data path costs the processor: packets go to and fro between two containers, sent and received by this one
 * thread on one processor, so that all the kernel does for them on the way is this thread's time (veth hands a packet on
 * in the same softirq, which runs as the sender leaves the kernel). Other load hardly shows: rounds differ by a percent.
 *
 * Usage: trips udp|tcp COUNT ROUNDS CLIENT,SERVER,ADDRESS...; namespaces by name, ADDRESS the server's, IPv4. A trip is 64
 * bytes there and back, or 256 KiB there. The pairs take turns; prints a line for each with nanoseconds a trip, ROUNDS of them. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum { PORT = 7777, SMALL = 64, LARGE = 256 << 10, ROOM = 4 << 20, WAIT_S = 5 };

struct pair {
    int client, server;
    double *took;
};

static void check(int bad, const char *what) {
    if (bad) {
        perror(what);
        exit(1);
    }
}

static int socket_in(const char *netns, int type) {
    char path[256];
    snprintf(path, sizeof path, "/run/netns/%s", netns);
    int there = open(path, O_RDONLY | O_CLOEXEC), room = ROOM, one = 1;
    check(there < 0 || setns(there, CLONE_NEWNET), path);
    close(there);
    int made = socket(AF_INET, type, 0);
    struct timeval wait = {.tv_sec = WAIT_S};
    setsockopt(made, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    setsockopt(made, SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof room);
    setsockopt(made, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof room);
    setsockopt(made, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof wait);
    /* others pace themselves by timers, and then it is not the path that is measured */
    if (type == SOCK_STREAM) setsockopt(made, IPPROTO_TCP, 13 /* TCP_CONGESTION */, "reno", 4);
    return made;
}

static void connect_pair(struct pair *pair, char *said, int type) {
    char *client = strtok(said, ","), *server = strtok(NULL, ","), *address = strtok(NULL, ",");
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(PORT)}, from;
    socklen_t size = sizeof from;
    char byte = 0;
    check(!address || inet_pton(AF_INET, address, &at.sin_addr) != 1, "CLIENT,SERVER,ADDRESS");
    int listener = socket_in(server, type);
    check(bind(listener, (void *)&at, sizeof at), "bind");
    if (type == SOCK_STREAM) check(listen(listener, 1), "listen");
    pair->client = socket_in(client, type);
    check(connect(pair->client, (void *)&at, sizeof at), "connect");
    if (type == SOCK_STREAM) {
        pair->server = accept(listener, NULL, NULL);
        check(pair->server < 0, "accept");
        close(listener);
        return;
    }
    check(send(pair->client, &byte, 1, 0) != 1, "send");
    check(recvfrom(listener, &byte, 1, 0, (void *)&from, &size) != 1, "recv");
    check(connect(listener, (void *)&from, size), "connect back");
    pair->server = listener;
}

static void there_and_back(struct pair *pair) {
    char packet[SMALL] = {0};
    check(send(pair->client, packet, SMALL, 0) != SMALL || recv(pair->server, packet, SMALL, 0) != SMALL, "there");
    check(send(pair->server, packet, SMALL, 0) != SMALL || recv(pair->client, packet, SMALL, 0) != SMALL, "back");
}

static void there(struct pair *pair) {
    static char data[LARGE];
    for (ssize_t put = 0, got = 0; got < LARGE;) {
        ssize_t sent = put < LARGE ? send(pair->client, data, LARGE - put, MSG_DONTWAIT) : 0;
        put += sent > 0 ? sent : 0;
        ssize_t came = recv(pair->server, data, LARGE, put < LARGE ? MSG_DONTWAIT : 0);
        check(came <= 0 && put == LARGE, "recv");
        got += came > 0 ? came : 0;
    }
}

static double used_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return t.tv_sec * 1e9 + t.tv_nsec;
}

int main(int argc, char **argv) {
    if (argc < 5) return 2;
    int stream = !strcmp(argv[1], "tcp"), count = atoi(argv[2]), rounds = atoi(argv[3]), pairs = argc - 4;
    void (*trip)(struct pair *) = stream ? there : there_and_back;
    struct pair *all = calloc(pairs, sizeof *all);
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(sched_getcpu(), &one);
    check(sched_setaffinity(0, sizeof one, &one), "sched_setaffinity");
    for (int n = 0; n < pairs; n++) {
        all[n].took = calloc(rounds, sizeof(double));
        connect_pair(all + n, argv[4 + n], stream ? SOCK_STREAM : SOCK_DGRAM);
    }
    for (int round = -1; round < rounds; round++) /* the first is not counted: connections open their windows */
        for (int turn = 0; turn < pairs; turn++) {
            struct pair *pair = all + (turn + round + 1) % pairs;
            double before = used_ns();
            for (int n = 0; n < count; n++) trip(pair);
            if (round >= 0) pair->took[round] = (used_ns() - before) / count;
        }
    for (int n = 0; n < pairs; n++) {
        for (int round = 0; round < rounds; round++) printf("%.0f ", all[n].took[round]);
        printf("\n");
    }
    return 0;
}
