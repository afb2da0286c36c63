// Matrix units (AMX) in plain C++, for CPUs without them: what the instructions that linear.h uses do, as Intel's
// Software Developer's Manual has them. Put before a source by the compiler's -include.
#pragma once

#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cmath>
#include <cstdint>
#include <cstring>

namespace emulated {

struct Units {
    uint16_t line_bytes[8] = {};
    uint8_t lines[8] = {};
    uint8_t tiles[8][16][64] = {};
};
inline thread_local Units units;

inline void loadconfig(const void* shapes) {
    units = {};
    std::memcpy(units.line_bytes, static_cast<const uint8_t*>(shapes) + 16, sizeof units.line_bytes);
    std::memcpy(units.lines, static_cast<const uint8_t*>(shapes) + 48, sizeof units.lines);
}

inline void release() { units = {}; }

inline void loadd(int tile, const void* from, int64_t stride) {
    for (int i = 0; i < units.lines[tile]; ++i)
        std::memcpy(units.tiles[tile][i], static_cast<const uint8_t*>(from) + i * stride, units.line_bytes[tile]);
}

inline void stored(int tile, void* to, int64_t stride) {
    for (int i = 0; i < units.lines[tile]; ++i)
        std::memcpy(static_cast<uint8_t*>(to) + i * stride, units.tiles[tile][i], units.line_bytes[tile]);
}

// A value of a line. Subnormal ones count as zero.
inline float bf16(const uint8_t* line, int idx) {
    uint32_t bits = 0;
    std::memcpy(reinterpret_cast<uint8_t*>(&bits) + 2, line + 2 * idx, 2);
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return std::fpclassify(value) == FP_SUBNORMAL ? std::copysign(0.0f, value) : value;
}

inline void dpbf16ps(int sums, int rows, int weights) {
    for (int m = 0; m < units.lines[sums]; ++m)
        for (int n = 0; n < units.line_bytes[sums] / 4; ++n) {
            float even = 0, odd = 0, sum;
            for (int k = 0; k < units.line_bytes[rows] / 4; ++k) {
                const uint8_t *row = units.tiles[rows][m], *column = units.tiles[weights][k];
                even = std::fma(bf16(row, 2 * k), bf16(column, 2 * n), even);
                odd = std::fma(bf16(row, 2 * k + 1), bf16(column, 2 * n + 1), odd);
            }
            std::memcpy(&sum, units.tiles[sums][m] + 4 * n, sizeof sum);
            sum += even + odd;
            std::memcpy(units.tiles[sums][m] + 4 * n, &sum, sizeof sum);
        }
}

inline int cpuid_count(unsigned, unsigned, unsigned*, unsigned*, unsigned*, unsigned* d) {
    *d = 1 << 22 | 1 << 24;  // AMX-BF16, AMX-TILE
    return 1;
}

inline long permitted(...) { return 0; }
}  // namespace emulated

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#define _tile_loadconfig emulated::loadconfig
#define _tile_release emulated::release
#define _tile_loadd emulated::loadd
#define _tile_stored emulated::stored
#define _tile_dpbf16ps emulated::dpbf16ps
#define __get_cpuid_count emulated::cpuid_count
#define syscall emulated::permitted
