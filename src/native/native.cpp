// The C interface: picks the interpreter for the processor.
#include "kernels.h"

int ws_best_level(void) {
#if WS_HAS_LEVELS
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        return 2;
    if (__builtin_cpu_supports("avx2")) return 1;
#endif
    return 0;
}

int ws_run(int level, const ws_program* program, const ws_tile* tile) {
#if WS_HAS_LEVELS
    if (level >= 2) return weightsmith::avx512::run(*program, *tile);
    if (level == 1) return weightsmith::avx2::run(*program, *tile);
#else
    (void)level;
#endif
    return weightsmith::baseline::run(*program, *tile);
}

const char* ws_opcodes(void) {
#define WS_NAME(name) #name " "
    return WS_OPCODES(WS_NAME);
#undef WS_NAME
}
