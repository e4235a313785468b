/* The other end of remote.c: runs the operation that it finds in a mapped file, again and again, on the image in it.
   Who steps it puts an image and a job there whenever it stands at step_begin. */
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "stepping.h"

__attribute__((noinline)) void step_begin(void) { __asm__ volatile("" ::: "memory"); }

int main(int argc, char **argv)
{
    int fd = argc > 1 ? open(argv[1], O_RDWR) : -1;
    step_world *w = mmap(NULL, sizeof *w + sizeof(step_job) + PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (w == MAP_FAILED)
        return 2;
    step_job *job = (step_job *)(w + 1);
    _Atomic int *phase = (_Atomic int *)((char *)(w + 1) + (sizeof *job + 63) / 64 * 64);
    for (;;) {
        step_begin();
        *phase = 1;
        step_run(w, job);
        *phase = 2;
    }
}
