/* The wall clock of a program that preloads this is off by the microseconds in the file that SHIFT_FILE names. */
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t *shift;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("SHIFT_FILE");
    int file = path ? open(path, O_RDONLY) : -1;
    void *place = file < 0 ? MAP_FAILED : mmap(NULL, sizeof(int64_t), PROT_READ, MAP_SHARED, file, 0);
    if (place == MAP_FAILED)
        abort();
    shift = place;
}

int gettimeofday(struct timeval *told, void *zone) {
    struct timespec real;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &real);
    int64_t us = (int64_t)real.tv_sec * 1000000 + real.tv_nsec / 1000 + (shift ? *shift : 0);
    told->tv_sec = us / 1000000;
    told->tv_usec = us % 1000000;
    return 0;
}

time_t time(time_t *told) {
    struct timeval now;
    gettimeofday(&now, NULL);
    if (told)
        *told = now.tv_sec;
    return now.tv_sec;
}
