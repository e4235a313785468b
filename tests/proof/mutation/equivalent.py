"""Mutants that are the same program, or differ in nothing that anybody may rely on: by name, each with its reason."""

from __future__ import annotations

EQUIVALENT: dict[str, str] = {
    (
        "shmcow_listed_count: return count <= SHMCOW_MAX_SEGMENTS ? count : SHMCOW_MAX_SEGMENTS; ->"
        " return count < SHMCOW_MAX_SEGMENTS ? count : SHMCOW_MAX_SEGMENTS;"
    ): "at the bound both arms are the bound",
    (
        "shmcow_take_generation: return r < 0 ? r : shmcow_find_free(h); -> return r < 1 ? r : shmcow_find_free(h);"
    ): "r is never 0 here: what was given up is 1, and judging with force is 1 or an error",
    ("shmcow_judge: return r < 0 ? r : 0; -> return r <= 0 ? r : 0;"): "r is 0 or an error here: both arms give 0",
    ("shmcow_judge: return r < 0 ? r : 0; -> return r < 1 ? r : 0;"): "r is 0 or an error here: both arms give 0",
    (
        "shmcow_older: for (; at > 0 && version[at - 1] < v; at--) { -> for (; at > 0 && version[at - 1] <= v; at--) {"
    ): "no two published generations have the same version",
    (
        "shmcow_reclaim: for (uint32_t k = n; k > 0 && k > keep; k--) { -> for (uint32_t k = n; k >"
        "= 0 && k > keep; k--) {"
    ): "k > keep says it already",
    (
        "shmcow_take_generation: return r < 0 ? r : shmcow_find_free(h); -> return r <= 0 ? r : shmcow_find_free(h);"
    ): "r is never 0 here: what was given up is 1, and judging with force is 1 or an error",
    (
        "shmcow_fill_segments: for (uint32_t k = 0; k < entry->segment_count; k++) { -> for (uint32"
        "_t k = 0; k <= entry->segment_count; k++) {"
    ): "no bit of `fresh` is set beyond the count",
    (
        "shmcow_build: for (uint32_t k = 0; k < entry->segment_count; k++) -> for (uint32_t k = 0; "
        "k <= entry->segment_count; k++)"
    ): "no bit of `fresh` is set beyond the count",
    (
        "shmcow_crc_fill: for (uint32_t n = 0; n < 256; n++) { -> for (uint32_t n = 1; n < 256; n++) {"
    ): "entry 0 is 0, as static memory is",
    (
        "shmcow_crc_fill: for (uint32_t n = 0; n < 256; n++) -> for (uint32_t n = 1; n < 256; n++)"
    ): "entry 0 is 0, as static memory is",
    (
        "shmcow_crc_go_on: for (; length >= 8; length -= 8, p += 8) { -> for (; length > 8; length -= 8, p += 8) {"
    ): "the loop by bytes gives the same",
    (
        "shmcow_crc_go_on: for (; length >= 8; length -= 8, p += 8) { -> for (; length >= 9; length -= 8, p += 8) {"
    ): "the loop by bytes gives the same",
    (
        'shmcow_crc_fill: table->folds = __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("sse4.1"); -> '
        'table->folds = __builtin_cpu_supports("pclmul") || __builtin_cpu_supports("sse4.1");'
    ): "differs on processors that have one of the two only",
    (
        'shmcow_crc_fill: table->folds = __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("sse4.1"); -> ;'
    ): "tables give the same, more slowly",
    "shmcow_crc_fill: table->folds = false; -> ;": "is not compiled for this processor",
    (
        "shmcow_crc_multiply: for (at += 4, length -= 64; length >= 64; at += 4, length -= 64) { -> for (at += 4, "
        "length -= 64; length > 64; at += 4, length -= 64) {"
    ): "the loop by 16 bytes gives the same",
    (
        "shmcow_crc_multiply: for (at += 4, length -= 64; length >= 64; at += 4, length -= 64) { -> for (at += 4, "
        "length -= 64; length >= 65; at += 4, length -= 64) {"
    ): "the loop by 16 bytes gives the same",
    (
        "shmcow_crc: if (table->folds && length >= 64) { -> if (table->folds && length > 64) {"
    ): "tables give the same for 64 bytes",
    (
        "shmcow_crc: if (table->folds && length >= 64) { -> if (table->folds && length >= 65) {"
    ): "tables give the same for 64 bytes",
}
