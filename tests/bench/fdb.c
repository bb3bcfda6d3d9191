/* The yardstick of bench_fdb.py: COUNT rows of a vxlan device, BATCH in each sendmsg, acknowledged once a
 * batch. Usage: fdb IFINDEX COUNT BATCH; prints seconds, and CPU seconds. Opening the socket is not counted. */
#include <arpa/inet.h>
#include <linux/neighbour.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#ifndef NTF_EXT_LEARNED
#define NTF_EXT_LEARNED 0x10
#endif

struct row {
    struct nlmsghdr n;
    struct ndmsg d;
    struct rtattr lladdr_head;
    unsigned char mac[8];
    struct rtattr dst_head;
    unsigned char dst[4];
};

static double now(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    int ifindex = atoi(argv[1]), count = atoi(argv[2]), batch = atoi(argv[3]);
    int fd = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE), size = 4 << 20;
    setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size);
    struct sockaddr_nl kernel = {.nl_family = AF_NETLINK};
    struct row *rows = calloc(batch, sizeof *rows);
    static char answer[1 << 16];
    double start = now(CLOCK_MONOTONIC), used = now(CLOCK_PROCESS_CPUTIME_ID);
    for (int done = 0; done < count; done += batch) {
        int n = count - done < batch ? count - done : batch;
        for (int i = 0; i < n; i++) {
            struct row *r = &rows[i];
            unsigned number = done + i, mac = htonl(number);
            r->n = (struct nlmsghdr){sizeof *r, RTM_NEWNEIGH,
                NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL | (i == n - 1 ? NLM_F_ACK : 0), number + 1, 0};
            r->d = (struct ndmsg){.ndm_family = AF_BRIDGE, .ndm_ifindex = ifindex,
                .ndm_state = NUD_PERMANENT, .ndm_flags = NTF_SELF | NTF_EXT_LEARNED};
            r->lladdr_head = (struct rtattr){10, NDA_LLADDR};
            memcpy(r->mac, "\x02\x00", 2);
            memcpy(r->mac + 2, &mac, 4);
            r->dst_head = (struct rtattr){8, NDA_DST};
            memcpy(r->dst, "\x0a\x00\x00\x02", 4);
        }
        if (sendto(fd, rows, n * sizeof *rows, 0, (struct sockaddr *)&kernel, sizeof kernel) < 0) return 3;
        for (int last = 0; !last;) {
            int got = recv(fd, answer, sizeof answer, 0);
            if (got < 0) return 4;
            for (struct nlmsghdr *h = (void *)answer; NLMSG_OK(h, got); h = NLMSG_NEXT(h, got)) {
                struct nlmsgerr *e = NLMSG_DATA(h);
                if (h->nlmsg_type != NLMSG_ERROR || e->error) return 5;
                last = h->nlmsg_seq == (unsigned)(done + n);
            }
        }
    }
    printf("%.6f %.6f\n", now(CLOCK_MONOTONIC) - start, now(CLOCK_PROCESS_CPUTIME_ID) - used);
    return 0;
}
