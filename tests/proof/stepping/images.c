/* How images are told apart: by a sum of scrambled words. */
#include <sys/mman.h>

#include "stepping.h"

#define SEEN (1u << 24)

static uint64_t scramble(uint64_t at, uint64_t word) /* the finalizer of splitmix64: S. Vigna 2015 */
{
    uint64_t x = word + (at + 1) * UINT64_C(0x9E3779B97F4A7C15);
    x = (x ^ x >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
    x = (x ^ x >> 27) * UINT64_C(0x94D049BB133111EB);
    return x ^ x >> 31;
}

uint64_t step_hash(const step_world *w)
{
    const unsigned char *bytes = (const unsigned char *)w;
    uint64_t sum = 0;
    for (size_t at = 0; at < sizeof *w / 8; at++) {
        uint64_t word;
        memcpy(&word, bytes + at * 8, 8);
        if (word != 0)
            sum += scramble(at, word);
    }
    return sum;
}

/* Where two images differ: all of it, for one instruction changes no more than one store can. */
uint32_t step_difference(const step_world *a, const step_world *b, uint32_t *length)
{
    const unsigned char *x = (const unsigned char *)a, *y = (const unsigned char *)b;
    const uint32_t block = 4096;
    uint32_t first = 0, last = sizeof *a;
    *length = 0;
    if (memcmp(x, y, sizeof *a) == 0)
        return 0;
    while (memcmp(x + first, y + first, block) == 0)
        first += block;
    while (x[first] == y[first])
        first++;
    while (last - first > block && memcmp(x + last - block, y + last - block, block) == 0)
        last -= block;
    while (x[last - 1] == y[last - 1])
        last--;
    first &= ~7u;
    *length = ((last + 7) & ~7u) - first;
    return first;
}

/* Remember it: was it unknown in this scene? The set is a shared mapping, which fork() does not copy. */
bool step_is_new(uint64_t hash)
{
    static uint64_t *seen;
    static uint32_t used;
    if (seen == NULL) {
        void *at = mmap(NULL, SEEN * sizeof *seen, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (at == MAP_FAILED)
            abort();
        seen = at;
    }
    uint64_t key = scramble((uint64_t)(uintptr_t)scene->name, hash) | 1;
    for (uint32_t at = (uint32_t)(key >> 20) % SEEN;; at = (at + 1) % SEEN) {
        if (seen[at] == key)
            return false;
        if (seen[at] == 0) {
            if (++used > SEEN / 4 * 3)
                abort();
            seen[at] = key;
            return true;
        }
    }
}
