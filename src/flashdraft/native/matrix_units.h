// Kernels on the CPU's matrix units (AMX), where it has them. In 8 and 4 bits, with a scale for each block, those
// units lose to vectors and are not used.
#pragma once

#include "activations.h"

// A pass takes two blocks of UNIT_ROWS rows.
constexpr int MAX_UNIT_ROWS = 2 * UNIT_ROWS;

#ifdef __AMX_BF16__
#include <immintrin.h>

// What is written to `memory` lies there: that tiles are loaded from it the compiler does not see.
inline void written(const void* memory) { asm volatile("" ::"r"(memory) : "memory"); }

// Up to MAX_UNIT_ROWS rows on the matrix unit. Its eight tiles: four of sums, then two of rows and two of weights.
template <int BLOCKS, int TILES, bool LINES>
void unit_kernel(const uint8_t* tile, int64_t tile_bytes, const Ahead& ahead, const Activations& a, int64_t row,
                 float* out) {
    const Operand* x = a.block(row, 0);
    for (int64_t block = 0; block < a.k / BLOCK; ++block) {
        constexpr int64_t bytes = BLOCK * LANES * 2, stride = 64;  // of 32 by 16 weights, and of a line of a tile
        const uint8_t* at = tile + block * bytes;
        _tile_loadd(6, at, stride);
        if constexpr (TILES == 2) _tile_loadd(7, at + tile_bytes, stride);
        _tile_loadd(4, x + block * UNIT_ROWS * BLOCK, stride);
        _tile_dpbf16ps(0, 4, 6);
        if constexpr (TILES == 2) _tile_dpbf16ps(1, 4, 7);
        if constexpr (BLOCKS == 2) {
            _tile_loadd(5, x + UNIT_ROWS * a.k + block * UNIT_ROWS * BLOCK, stride);
            _tile_dpbf16ps(2, 5, 6);
            if constexpr (TILES == 2) _tile_dpbf16ps(3, 5, 7);
        }
        for (int64_t line = 0; line < BLOCK / 2; ++line) {
            if constexpr (LINES) ahead.fetch(block * BLOCK / 2 + line);
            for (int t = 0; !LINES && t < TILES; ++t)
                prefetch(at + t * tile_bytes + line * 64 + ahead.tiles);
        }
    }
    constexpr int64_t stride = TILES * LANES * sizeof(float);
    float* second = out + UNIT_ROWS * TILES * LANES;
    _tile_stored(0, out, stride);
    if constexpr (TILES == 2) _tile_stored(1, out + LANES, stride);
    if constexpr (BLOCKS == 2) _tile_stored(2, second, stride);
    if constexpr (BLOCKS == 2 && TILES == 2) _tile_stored(3, second + LANES, stride);
}

// The shapes of the matrix unit's tiles, and all of them zero, for a pass of `rows`.
inline void shape_tiles(int64_t rows) {
    alignas(64) struct {
        uint8_t palette = 1, start = 0, reserved[14] = {};
        uint16_t line_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
        uint8_t lines[16] = {};
    } shapes;
    const uint8_t first = std::min<int64_t>(rows, UNIT_ROWS), second = std::max<int64_t>(rows - UNIT_ROWS, 1);
    for (int tile : {0, 1, 4}) shapes.lines[tile] = first;
    for (int tile : {2, 3, 5}) shapes.lines[tile] = second;
    for (int tile : {6, 7}) shapes.lines[tile] = UNIT_ROWS;
    written(&shapes);
    _tile_loadconfig(&shapes);
}

template <bool LINES>
Kernel unit_kernel_of(int64_t rows, int tiles) {
    if (rows > UNIT_ROWS) return tiles == 2 ? unit_kernel<2, 2, LINES> : unit_kernel<2, 1, LINES>;
    return tiles == 2 ? unit_kernel<1, 2, LINES> : unit_kernel<1, 1, LINES>;
}

inline void release_tiles() { _tile_release(); }
#else
inline void shape_tiles(int64_t) {}
inline void release_tiles() {}
template <bool LINES>
Kernel unit_kernel_of(int64_t, int) {
    return nullptr;
}
#endif
