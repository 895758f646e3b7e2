/* Preloaded into a daemon under test: calls to the system that wait for as long as a file is there, and names as a
 * directory has them. The directory is in the environment variable SLOW. Built and used by tests/waiting.rs alone. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <netdb.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void wait_while(const char *name) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", getenv("SLOW"), name);
    while (access(path, F_OK) == 0)
        usleep(2000);
}

int getifaddrs(struct ifaddrs **list) {
    int (*real)(struct ifaddrs **) = dlsym(RTLD_NEXT, "getifaddrs");
    wait_while("getifaddrs");
    return real(list);
}

/* The address of a name is in the file of that name; without a file no name server answers, with an empty one the
 * name does not exist. */
int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **list) {
    int (*real)(const char *, const char *, const struct addrinfo *, struct addrinfo **) =
        dlsym(RTLD_NEXT, "getaddrinfo");
    char path[4096], address[64] = "";
    wait_while("getaddrinfo");
    snprintf(path, sizeof path, "%s/name-%s", getenv("SLOW"), node);
    FILE *file = fopen(path, "r");
    if (!file)
        return EAI_AGAIN;
    if (!fgets(address, sizeof address, file))
        address[0] = 0;
    fclose(file);
    return address[0] ? real(address, service, hints, list) : EAI_NONAME;
}

int open64(const char *path, int flags, ...) {
    int (*real)(const char *, int, ...) = dlsym(RTLD_NEXT, "open64");
    const char *base = strrchr(path, '/');
    char name[300];
    va_list rest;
    va_start(rest, flags);
    mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    snprintf(name, sizeof name, "open-%s", base ? base + 1 : path);
    wait_while(name);
    return real(path, flags, mode);
}
