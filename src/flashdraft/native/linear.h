// Packed weights times prepared activations. An output's sum runs over k in one order, whatever the number of rows:
// a row's result is the same bits alone and in any batch.
//
// bfloat16 products run on the CPU's matrix units (AMX) where it has them, of one row too: they add in another order
// than vectors do.
//
// A pass over a tile takes up to MAX_ROWS rows, as many as have their sums in registers. bfloat16 rows may be
// MAX_BF16_ROWS if that is all of them: more passes of MAX_ROWS are quicker. Up to MAX_WIDE_ROWS bfloat16 rows take
// two tiles at once: enough sums for one row too.
#pragma once

#include <algorithm>
#include <array>

#include "matrix_units.h"
#include "team.h"

// The rows of a pass, `stride` elements apart, four to a pointer. The compiler is kept from knowing what lies between
// them: it makes a pointer for each row, more than x86 has registers, and at every step moves some back from vectors.
template <class T, int ROWS>
struct RowPointers {
    static constexpr int GROUP = 4, GROUPS = (ROWS + GROUP - 1) / GROUP;
    const T* group[GROUPS];
    int64_t stride, thrice;

    INLINE RowPointers(const T* first, int64_t stride) : stride(stride), thrice(3 * stride) {
        unrolled<GROUPS>([&](auto g) INLINED { group[g] = first + g * GROUP * stride; });
        hide(this->stride);
        hide(thrice);
    }
    template <int ROW>
    INLINE const T* at(std::integral_constant<int, ROW>) const {
        constexpr int place = ROW % GROUP;
        return group[ROW / GROUP] + (place == 3 ? thrice : place * stride);
    }
    INLINE void move(int64_t count) {
        unrolled<GROUPS>([&](auto g) INLINED {
            group[g] += count;
            hide(group[g]);
        });
    }

   private:
    template <class Value>
    static INLINE void hide([[maybe_unused]] Value& value) {
#ifdef __x86_64__
        asm("" : "+r"(value));
#endif
    }
};

template <int ROWS, int TILES, bool LINES>
void bf16_kernel(const uint8_t* tile, int64_t tile_bytes, const Ahead& ahead, const Activations& a, int64_t row,
                 float* out) {
    Floats acc[ROWS][TILES];
    unrolled<ROWS>([&](auto r) INLINED { unrolled<TILES>([&](auto t) INLINED { acc[r][t] = zeros(); }); });
    RowPointers<Operand, ROWS> x(a.operands + row * a.k, a.k);
    const uint8_t* next = tile + ahead.tiles;
    for (int64_t i = 0; i < a.k / 2; ++i) {
        if constexpr (LINES) {
            ahead.fetch(i);
        } else {
            unrolled<TILES>([&](auto t) INLINED { prefetch(next + t * tile_bytes); });
            next += 64;
        }
        unrolled<PAIR_STEPS>([&](auto step) INLINED {
            Weights weights[TILES];
            unrolled<TILES>([&](auto t) INLINED { weights[t] = weights_of(tile + t * tile_bytes, step); });
            unrolled<ROWS>([&](auto r) INLINED {
                const Operand* operand = x.at(r) + step;
                unrolled<TILES>([&](auto t) INLINED { acc[r][t] = dot(acc[r][t], weights[t], operand); });
            });
        });
        tile += 64;
        x.move(2);
    }
    unrolled<ROWS>([&](auto r) INLINED {
        unrolled<TILES>([&](auto t) INLINED { put(out + (r * TILES + t) * LANES, acc[r][t]); });
    });
}

// Of a block its values 4 * j to 4 * j + 3.
template <Kind KIND>
INLINE Bytes bytes_of(const uint8_t* block, int j) {
    if constexpr (KIND == INT8) return whole_bytes(block + j * 64);
#ifdef SMALL_BYTES
    if constexpr (KIND == INT7) return raw_bytes(block + j * 64);
#endif
    return j < 4 ? low_halves(block + j * 64) : high_halves(block + (j - 4) * 64);
}

template <Kind KIND>
INLINE Ints dot_of(const Ints& sum, const Bytes& bytes, const Quantized* four) {
#ifdef SMALL_BYTES
    if constexpr (KIND != INT8) return dot_small(sum, bytes, four);
#endif
    return dot(sum, bytes, four);
}

template <int ROWS, Kind KIND, bool LINES>
void int_kernel(const uint8_t* tile, int64_t, const Ahead& ahead, const Activations& a, int64_t row, float* out) {
    constexpr int lines = KIND == INT4 ? 4 : 8;  // of a block, 64 bytes each
    Floats acc[ROWS];
    unrolled<ROWS>([&](auto r) INLINED { acc[r] = zeros(); });
    const int64_t num_blocks = a.k / BLOCK;
    RowPointers<Quantized, ROWS> x(a.quantized + row * a.k, a.k);
    RowPointers<float, ROWS> scale(a.scale + row * num_blocks, num_blocks), sum(a.sum + row * num_blocks, num_blocks);
    for (int64_t b = 0; b < num_blocks; ++b) {
        Ints sums[ROWS];
        unrolled<ROWS>([&](auto r) INLINED { sums[r] = Ints{}; });
        unrolled<8>([&](auto j) INLINED {
            if constexpr (!LINES && j < lines) prefetch(tile + j * 64 + ahead.tiles);
            const Bytes bytes = bytes_of<KIND>(tile, j);
            unrolled<ROWS>([&](auto r) INLINED { sums[r] = dot_of<KIND>(sums[r], bytes, x.at(r) + j * 4); });
        });
        tile += lines * 64;
        if constexpr (!LINES) prefetch(tile + ahead.tiles);
        for (int j = 0; LINES && j < BLOCK / 2; ++j) ahead.fetch(b * BLOCK / 2 + j);
        const Floats weight_scale = from_half(tile);
        Floats minimum = from_half(tile + 32);
        if constexpr (KIND == INT8 && BYTE_OFFSET) minimum = fma(weight_scale, all(BYTE_OFFSET), minimum);
        tile += 64;
        unrolled<ROWS>([&](auto r) INLINED {
            acc[r] = fma(to_floats(sums[r]), weight_scale * all(*scale.at(r)), acc[r]);
            acc[r] = fma(minimum, all(*sum.at(r)), acc[r]);
        });
        x.move(BLOCK);
        scale.move(1);
        sum.move(1);
    }
    unrolled<ROWS>([&](auto r) INLINED { put(out + r * LANES, acc[r]); });
}

#ifdef INT16_ROWS
template <int ROWS, bool LINES>
void int16_kernel(const uint8_t* tile, int64_t, const Ahead& ahead, const Activations& a, int64_t row, float* out) {
    Floats acc[ROWS];
    unrolled<ROWS>([&](auto r) INLINED { acc[r] = zeros(); });
    const Floats weight_scale = load((const float*)tile);
    tile += LANES * sizeof(float);
    const uint8_t* next = tile + ahead.tiles;
    const int64_t num_blocks = a.k / BLOCK;
    const int16_t* x = a.halves + row * a.k;
    const float* scale = a.scale + row * num_blocks;
    for (int64_t b = 0; b < num_blocks; ++b) {
        Ints sums[ROWS];
        unrolled<ROWS>([&](auto r) INLINED { sums[r] = Ints{}; });
        unrolled<BLOCK / 2>([&](auto j) INLINED {
            if constexpr (LINES) {
                ahead.fetch(b * BLOCK / 2 + j);
            } else {
                prefetch(next);
                next += ahead.step;
            }
            const Ints weights = raw_bytes(tile + j * 64);
            unrolled<ROWS>([&](auto r) INLINED {
                sums[r] = dot_pair(sums[r], weights, x + r * a.k + b * BLOCK + 2 * j);
            });
        });
        tile += BLOCK * LANES * sizeof(int16_t);
        unrolled<ROWS>([&](auto r) INLINED { acc[r] = fma(to_floats(sums[r]), all(scale[r * num_blocks + b]), acc[r]); });
    }
    unrolled<ROWS>([&](auto r) INLINED { put(out + r * LANES, acc[r] * weight_scale); });
}

template <bool LINES, size_t... ROWS>
Kernel int16_kernel_of(int64_t rows, std::index_sequence<ROWS...>) {
    static constexpr std::array kernels{int16_kernel<ROWS + 1, LINES>...};
    return kernels[rows - 1];
}
#endif

template <bool LINES, size_t... ROWS>
Kernel bf16_kernel_of(int64_t rows, int tiles, std::index_sequence<ROWS...>) {
    static constexpr std::array one{bf16_kernel<ROWS + 1, 1, LINES>...};
    static constexpr std::array two{bf16_kernel<std::min<int>(ROWS + 1, MAX_WIDE_ROWS), 2, LINES>...};
    return (tiles == 2 ? two : one)[rows - 1];
}

template <bool LINES, size_t... ROWS>
Kernel int_kernel_of(int32_t kind, int64_t rows, std::index_sequence<ROWS...>) {
    static constexpr std::array int8{int_kernel<ROWS + 1, INT8, LINES>...}, int4{int_kernel<ROWS + 1, INT4, LINES>...};
#ifdef SMALL_BYTES
    static constexpr std::array int7{int_kernel<ROWS + 1, INT7, LINES>...};
    if (kind == INT7) return int7[rows - 1];
#endif
    return (kind == INT8 ? int8 : int4)[rows - 1];
}

template <bool LINES>
Kernel choose_kernel(int32_t kind, int64_t rows, int tiles) {
    if (on_units(kind)) return unit_kernel_of<LINES>(rows, tiles);
#ifdef INT16_ROWS
    if (kind == INT16) return int16_kernel_of<LINES>(rows, std::make_index_sequence<INT16_ROWS>());
#endif
    // Lines are fetched in passes of many rows alone.
    constexpr int most = LINES ? MAX_ROWS : MAX_BF16_ROWS;
    if (kind == BF16) return bf16_kernel_of<LINES>(rows, tiles, std::make_index_sequence<most>());
    return int_kernel_of<LINES>(kind, rows, std::make_index_sequence<MAX_ROWS>());
}

// How often the weights are gone through.
inline int64_t num_passes(int32_t kind, int64_t rows) {
    int64_t most = kind == BF16 && rows <= MAX_BF16_ROWS ? MAX_BF16_ROWS : MAX_ROWS;
    if (on_units(kind)) most = MAX_UNIT_ROWS;
#ifdef INT16_ROWS
    if (kind == INT16) most = INT16_ROWS;
#endif
    return (rows + most - 1) / most;
}

// The first row of a pass; of the pass behind the last one, `rows`.
inline int64_t first_row(int32_t kind, int64_t rows, int64_t pass) {
    return on_units(kind) ? std::min(pass * MAX_UNIT_ROWS, rows) : rows * pass / num_passes(kind, rows);
}

// How many tiles a pass over some of `rows` takes at once.
inline int widest(int32_t kind, int64_t rows) {
    if (kind != BF16) return 1;
    return on_units(kind) || rows <= num_passes(kind, rows) * MAX_WIDE_ROWS ? 2 : 1;
}

// All `rows` times tiles first .. last - 1; emit(row, column, values of 16 columns) hears each result once.
template <class Emit>
void multiply(const Linear& w, const Activations& a, int64_t rows, int64_t first, int64_t last, const Emit& emit) {
    const int wide = widest(w.kind, rows);
    const int64_t bytes = w.tile_bytes(), passes = num_passes(w.kind, rows);
    const int64_t chunk = std::max<int64_t>(wide, (last - first) / (Team::size() * 8) / wide * wide);
    Team::each(last - first, chunk, [&](int64_t from, int64_t to) {
        alignas(64) float out[MAX_UNIT_ROWS * 2 * LANES];
        Wanted& wanted = Wanted::of_thread();
        for (int64_t tile = first + from; tile < first + to;) {
            const int tiles = tile + wide <= first + to ? wide : 1;
            // Where the memory has nothing else to do, two passes fetch half of the next tile each: one alone would wait.
            const bool is_shared = w.kind == INT16 && passes > 1 && !wanted.has(a.k / 2);
            for (int64_t pass = 0; pass < passes; ++pass) {
                const int64_t row = first_row(w.kind, rows, pass), count = first_row(w.kind, rows, pass + 1) - row;
                const int32_t* lines = pass && !is_shared ? wanted.take(a.k / 2) : nullptr;
                Ahead ahead{pass ? 0 : tiles * bytes, 64, wanted.base, lines};
                if (is_shared && pass < 2) ahead = {tiles * bytes + pass * (bytes / 2 & -64), 32, nullptr, nullptr};
                Kernel kernel = (lines ? choose_kernel<true> : choose_kernel<false>)(w.kind, count, tiles);
                if (on_units(w.kind)) shape_tiles(count);
                kernel(w.tiles + tile * bytes, bytes, ahead, a, row, out);
                for (int64_t r = 0; r < count; ++r)
                    for (int t = 0; t < tiles; ++t)
                        emit(row + r, (tile + t) * LANES, load(out + (r * tiles + t) * LANES));
            }
            tile += tiles;
        }
        if (on_units(w.kind)) release_tiles();
    });
}
