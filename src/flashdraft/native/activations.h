// What packed weights are multiplied with, and what a kernel is handed.
//
// Weights lie in tiles of 16 output rows, one for each lane of a vector.
//   BF16: [k / 2][16][2] bfloat16.
//   INT8: blocks of 32 along k: [8][16][4] uint8, then 16 scales and 16 minimums (float16); w = scale * q + minimum.
//   INT7: the same, with q of at most 127. Only with SMALL_BYTES.
//   INT4: the same, [4][16][4] bytes: the low halves are k 0..15 of the block, the high halves 16..31.
//   INT16: 16 scales (float32), then [k / 2][16][2] int16 of at most INT16_WEIGHT; w = scale * q. Only with INT16_ROWS.
// Activations: Operand for BF16; else integers with a scale a block, int16 of at most INT16_ACTIVATION for INT16 and
// Quantized otherwise, then with scale * sum(q) for the minimums.
#pragma once

#ifdef __AMX_BF16__
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "vectors.h"

enum Kind : int32_t { BF16 = 0, INT8 = 1, INT4 = 2, INT16 = 3, INT7 = 4 };
constexpr int BLOCK = 32;
// BLOCK products of one with the other add up to less than 2^30.
constexpr int INT16_WEIGHT = (1 << 13) - 1, INT16_ACTIVATION = (1 << 12) - 1;
constexpr int UNIT_ROWS = 16;  // that a matrix unit multiplies at once

// Whether this CPU has matrix units for bfloat16 and Linux lets this process use them.
inline bool has_matrix_units() {
#ifdef __AMX_BF16__
    static const bool found = [] {
        constexpr unsigned bf16 = 1 << 22, tile = 1 << 24;
        constexpr long request = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
        unsigned a, b, c, d;
        return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & bf16) && (d & tile) &&
               !syscall(SYS_arch_prctl, request, tile_data);
    }();
    return found;
#else
    return false;
#endif
}

inline bool on_units(int32_t kind) { return kind == BF16 && has_matrix_units(); }

struct Linear {
    const uint8_t* tiles;
    int64_t n, k;
    int32_t kind;

    int64_t num_tiles() const { return (n + LANES - 1) / LANES; }
    int64_t tile_bytes() const {
        if (kind == BF16) return k * LANES * 2;
        if (kind == INT16) return LANES * 4 + k * LANES * 2;
        return k / BLOCK * (kind == INT4 ? 256 + 64 : 512 + 64);
    }
};

struct Activations {
    int64_t k;
    int32_t kind;          // of the weights
    Operand* operands;     // [rows, k]; for matrix units [rows / UNIT_ROWS][k / BLOCK][UNIT_ROWS][BLOCK]
    Quantized* quantized;  // [rows, k]
    int16_t* halves;       // [rows, k]
    float *scale, *sum;    // [rows, k / BLOCK]

    // Where 32 values of a row from `column` on lie in operands.
    Operand* block(int64_t row, int64_t column) const {
        if (!has_matrix_units()) return operands + row * k + column;
        return operands + row / UNIT_ROWS * UNIT_ROWS * k + column * UNIT_ROWS + row % UNIT_ROWS * BLOCK;
    }
};

// 32 values, columns `column` and on of a row, into the form that the weights want.
INLINE void prepare(const Activations& to, int64_t row, int64_t column, const Floats& first, const Floats& second) {
    if (to.kind == BF16) {
        Operand* block = to.block(row, column);
        put(block, first);
        put(block + LANES, second);
        return;
    }
    const int64_t at = row * to.k + column, block = at / BLOCK;
    const float most = to.kind == INT16 ? INT16_ACTIVATION : 127;
    const float largest = max_of(max(abs(first), abs(second))), scale = largest / most;
    const Floats inverse = all(largest > 0 ? most / largest : 0);
    const Ints a = nearest(first * inverse), b = nearest(second * inverse);
#ifdef INT16_ROWS
    if (to.kind == INT16) {
        put_int16(to.halves + at, a);
        put_int16(to.halves + at + LANES, b);
        to.scale[block] = scale;
        return;
    }
#endif
    put_quantized(to.quantized + at, a);
    put_quantized(to.quantized + at + LANES, b);
    to.scale[block] = scale;
    to.sum[block] = scale * float(sum_of(a + b));
}

// Lines of memory, 64 bytes each, that a thread will read behind its Linears: line i lies at base + 64 * next[i]. They
// are fetched by kernels whose weights lie in the cache already, so that the memory would be idle.
struct Wanted {
    const uint8_t* base = nullptr;
    const int32_t *next = nullptr, *end = nullptr;

    bool has(int64_t count) const { return end - next >= count; }
    // The next `count`, or null where fewer are left.
    const int32_t* take(int64_t count) {
        if (!has(count)) return nullptr;
        next += count;
        return next - count;
    }
    static Wanted& of_thread() {
        static thread_local Wanted wanted;
        return wanted;
    }
};

// What is on its way to the cache while a kernel computes: what lies `tiles` bytes after its tiles, or k / 2 `lines`.
struct Ahead {
    int64_t tiles;
    int64_t step;  // how many bytes further for each 64 of its own tile: 64, or 32 for half of what lies there
    const uint8_t* base;
    const int32_t* lines;

    void fetch(int64_t line) const { prefetch(base + 64 * int64_t(lines[line])); }
};

// A kernel: some rows from `row` on, times one tile or two, into out[rows][tiles][LANES].
using Kernel = void (*)(const uint8_t* tile, int64_t tile_bytes, const Ahead& ahead, const Activations& a, int64_t row,
                        float* out);
