// Packed weights times prepared activations. An output's sum runs over k in one order, whatever the number of rows:
// a row's result is the same bits alone and in any batch.
//
// Weights lie in tiles of 16 output rows, one for each lane of a vector.
//   BF16: [k / 2][16][2] bfloat16.
//   INT8: blocks of 32 along k: [8][16][4] uint8, then 16 scales and 16 minimums (float16); w = scale * q + minimum.
//   INT4: the same, [4][16][4] bytes: the low halves are k 0..15 of the block, the high halves 16..31.
// Activations: bfloat16 for BF16; else int8 with a scale a block, and scale * sum(q) for the minimums.
//
// bfloat16 products run on the CPU's matrix units (AMX) where it has them, of one row too: they add in another order
// than vectors do. In 8 and 4 bits, with a scale for each block, those units lose to vectors and are not used.
#pragma once

#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#include "team.h"

enum Kind : int32_t { BF16 = 0, INT8 = 1, INT4 = 2 };
constexpr int LANES = 16;
constexpr int BLOCK = 32;
// Of one pass over a tile. bfloat16 rows may be a few more if that is all of them: more passes of 8 are quicker.
constexpr int MAX_ROWS = 8, MAX_BF16_ROWS = 14;
// A matrix unit multiplies 16 rows at once; a pass takes two such blocks.
constexpr int UNIT_ROWS = 16, MAX_UNIT_ROWS = 2 * UNIT_ROWS;

// Whether this CPU has matrix units for bfloat16 and Linux lets this process use them.
inline bool has_matrix_units() {
    static const bool found = [] {
        constexpr unsigned bf16 = 1 << 22, tile = 1 << 24;
        constexpr long request = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
        unsigned a, b, c, d;
        return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & bf16) && (d & tile) &&
               !syscall(SYS_arch_prctl, request, tile_data);
    }();
    return found;
}

struct Linear {
    const uint8_t* tiles;
    int64_t n, k;
    int32_t kind;

    int64_t num_tiles() const { return (n + LANES - 1) / LANES; }
    int64_t tile_bytes() const {
        if (kind == BF16) return k * LANES * 2;
        return k / BLOCK * (kind == INT8 ? 512 + 64 : 256 + 64);
    }
};

struct Activations {
    int64_t k;
    bool is_bf16;
    uint16_t* bf16;      // [rows, k]; for matrix units [rows / UNIT_ROWS][k / BLOCK][UNIT_ROWS][BLOCK]
    int8_t* quantized;   // [rows, k]
    float *scale, *sum;  // [rows, k / BLOCK]

    // Where 32 values of a row from `column` on lie in bf16.
    uint16_t* block(int64_t row, int64_t column) const {
        if (!has_matrix_units()) return bf16 + row * k + column;
        return bf16 + row / UNIT_ROWS * UNIT_ROWS * k + column * UNIT_ROWS + row % UNIT_ROWS * BLOCK;
    }
};

inline bool on_units(int32_t kind) { return kind == BF16 && has_matrix_units(); }

// What is written to `memory` lies there: that tiles are loaded from it the compiler does not see.
inline void written(const void* memory) { asm volatile("" ::"r"(memory) : "memory"); }

inline __m256i to_bf16(__m512 x) { return (__m256i)_mm512_cvtneps_pbh(x); }
inline __m512 from_bf16(const uint16_t* x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)x)), 16));
}

// 32 values, columns `column` and on of a row, into the form that the weights want.
inline void prepare(const Activations& to, int64_t row, int64_t column, __m512 first, __m512 second) {
    if (to.is_bf16) {
        uint16_t* block = to.block(row, column);
        _mm256_storeu_si256((__m256i*)block, to_bf16(first));
        _mm256_storeu_si256((__m256i*)(block + LANES), to_bf16(second));
        return;
    }
    int64_t at = row * to.k + column;
    float largest = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(first), _mm512_abs_ps(second)));
    float scale = largest / 127;
    __m512 inverse = _mm512_set1_ps(largest > 0 ? 127 / largest : 0);
    __m512i a = _mm512_cvtps_epi32(_mm512_mul_ps(first, inverse));
    __m512i b = _mm512_cvtps_epi32(_mm512_mul_ps(second, inverse));
    _mm_storeu_si128((__m128i*)(to.quantized + at), _mm512_cvtsepi32_epi8(a));
    _mm_storeu_si128((__m128i*)(to.quantized + at + LANES), _mm512_cvtsepi32_epi8(b));
    int64_t block = at / BLOCK;
    to.scale[block] = scale;
    to.sum[block] = scale * float(_mm512_reduce_add_epi32(_mm512_add_epi32(a, b)));
}

// Lines of memory, 64 bytes each, that a thread will read behind its Linears: line i lies at base + 64 * next[i]. They
// are fetched by kernels whose weights lie in the cache already, so that the memory would be idle.
struct Wanted {
    const uint8_t* base = nullptr;
    const int32_t *next = nullptr, *end = nullptr;

    // The next `count`, or null where fewer are left.
    const int32_t* take(int64_t count) {
        if (end - next < count) return nullptr;
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
    const uint8_t* base;
    const int32_t* lines;

    void fetch(int64_t line) const { _mm_prefetch(base + 64 * int64_t(lines[line]), _MM_HINT_T1); }
};

// A kernel: `ROWS` rows from `row` on, times one tile or two, into out[ROWS][tiles][LANES].
using Kernel = void (*)(const uint8_t* tile, int64_t tile_bytes, const Ahead& ahead, const Activations& a, int64_t row,
                        float* out);

template <int ROWS, int TILES, bool LINES>
void bf16_kernel(const uint8_t* tile, int64_t tile_bytes, const Ahead& ahead, const Activations& a, int64_t row,
                 float* out) {
    __m512 acc[ROWS][TILES];
    for (auto& sums : acc)
        for (auto& sum : sums) sum = _mm512_setzero_ps();
    const uint16_t* x = a.bf16 + row * a.k;
    for (int64_t i = 0; i < a.k / 2; ++i) {
        __m512bh weights[TILES];
#pragma GCC unroll 2
        for (int t = 0; t < TILES; ++t) {
            const uint8_t* at = tile + t * tile_bytes + i * 64;
            weights[t] = (__m512bh)_mm512_loadu_si512(at);
            if constexpr (!LINES) _mm_prefetch(at + ahead.tiles, _MM_HINT_T1);
        }
        if constexpr (LINES) ahead.fetch(i);
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; ++r) {
            int32_t pair;
            std::memcpy(&pair, x + r * a.k + 2 * i, sizeof pair);
#pragma GCC unroll 2
            for (int t = 0; t < TILES; ++t)
                acc[r][t] = _mm512_dpbf16_ps(acc[r][t], weights[t], (__m512bh)_mm512_set1_epi32(pair));
        }
    }
    for (int r = 0; r < ROWS; ++r)
        for (int t = 0; t < TILES; ++t) _mm512_storeu_ps(out + (r * TILES + t) * LANES, acc[r][t]);
}

template <int ROWS, Kind KIND, bool LINES>
void int_kernel(const uint8_t* tile, int64_t, const Ahead& ahead, const Activations& a, int64_t row, float* out) {
    __m512 acc[ROWS];
    for (auto& sum : acc) sum = _mm512_setzero_ps();
    const int64_t num_blocks = a.k / BLOCK;
    const int8_t* x = a.quantized + row * a.k;
    const float *scale = a.scale + row * num_blocks, *total = a.sum + row * num_blocks;
    const __m512i low = _mm512_set1_epi8(15);
    for (int64_t b = 0; b < num_blocks; ++b) {
        __m512i q[8];
#pragma GCC unroll 8
        for (int j = 0; j < (KIND == INT8 ? 8 : 4); ++j) {
            __m512i bytes = _mm512_loadu_si512(tile + j * 64);
            if constexpr (!LINES) _mm_prefetch(tile + ahead.tiles + j * 64, _MM_HINT_T1);
            if constexpr (KIND == INT8) {
                q[j] = bytes;
            } else {
                q[j] = _mm512_and_si512(bytes, low);
                q[j + 4] = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), low);
            }
        }
        tile += KIND == INT8 ? 512 : 256;
        if constexpr (!LINES) _mm_prefetch(tile + ahead.tiles, _MM_HINT_T1);
        for (int j = 0; LINES && j < BLOCK / 2; ++j) ahead.fetch(b * BLOCK / 2 + j);
        __m512 weight_scale = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)tile));
        __m512 minimum = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)(tile + 32)));
        tile += 64;
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; ++r) {
            __m512i dot = _mm512_setzero_si512();
#pragma GCC unroll 8
            for (int j = 0; j < 8; ++j) {
                int32_t four;
                std::memcpy(&four, x + r * a.k + b * BLOCK + j * 4, sizeof four);
                dot = _mm512_dpbusd_epi32(dot, q[j], _mm512_set1_epi32(four));
            }
            __m512 both = _mm512_mul_ps(weight_scale, _mm512_set1_ps(scale[r * num_blocks + b]));
            acc[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), both, acc[r]);
            acc[r] = _mm512_fmadd_ps(minimum, _mm512_set1_ps(total[r * num_blocks + b]), acc[r]);
        }
    }
    for (int r = 0; r < ROWS; ++r) _mm512_storeu_ps(out + r * LANES, acc[r]);
}

// Up to MAX_UNIT_ROWS rows on the matrix unit. Its eight tiles: four of sums, then two of rows and two of weights.
template <int BLOCKS, int TILES, bool LINES>
void unit_kernel(const uint8_t* tile, int64_t tile_bytes, const Ahead& ahead, const Activations& a, int64_t row,
                 float* out) {
    const uint16_t* x = a.block(row, 0);
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
                _mm_prefetch(at + t * tile_bytes + line * 64 + ahead.tiles, _MM_HINT_T1);
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

template <bool LINES, size_t... ROWS>
Kernel bf16_kernel_of(int64_t rows, int tiles, std::index_sequence<ROWS...>) {
    static constexpr std::array one{bf16_kernel<ROWS + 1, 1, LINES>...}, two{bf16_kernel<ROWS + 1, 2, LINES>...};
    return (tiles == 2 ? two : one)[rows - 1];
}

template <bool LINES, size_t... ROWS>
Kernel int_kernel_of(int32_t kind, int64_t rows, std::index_sequence<ROWS...>) {
    static constexpr std::array int8{int_kernel<ROWS + 1, INT8, LINES>...}, int4{int_kernel<ROWS + 1, INT4, LINES>...};
    return (kind == INT8 ? int8 : int4)[rows - 1];
}

template <bool LINES>
Kernel choose_kernel(int32_t kind, int64_t rows, int tiles) {
    if (on_units(kind)) return unit_kernel_of<LINES>(rows, tiles);
    // Lines are fetched in passes of many rows alone.
    constexpr int most = LINES ? MAX_ROWS : MAX_BF16_ROWS;
    if (kind == BF16) return bf16_kernel_of<LINES>(rows, tiles, std::make_index_sequence<most>());
    return int_kernel_of<LINES>(kind, rows, std::make_index_sequence<MAX_ROWS>());
}

// How often the weights are gone through.
inline int64_t num_passes(int32_t kind, int64_t rows) {
    int64_t most = kind == BF16 && rows <= MAX_BF16_ROWS ? MAX_BF16_ROWS : MAX_ROWS;
    if (on_units(kind)) most = MAX_UNIT_ROWS;
    return (rows + most - 1) / most;
}

// The first row of a pass; of the pass behind the last one, `rows`.
inline int64_t first_row(int32_t kind, int64_t rows, int64_t pass) {
    return on_units(kind) ? std::min(pass * MAX_UNIT_ROWS, rows) : rows * pass / num_passes(kind, rows);
}

// All `rows` times tiles first .. last - 1; emit(row, column, values of 16 columns) hears each result once.
template <class Emit>
void multiply(const Linear& w, const Activations& a, int64_t rows, int64_t first, int64_t last, const Emit& emit) {
    const int widest = w.kind == BF16 ? 2 : 1;  // bfloat16 tiles go two by two: enough sums at once for one row too
    const int64_t bytes = w.tile_bytes(), passes = num_passes(w.kind, rows);
    const int64_t chunk = std::max<int64_t>(widest, (last - first) / (Team::size() * 8) / widest * widest);
    Team::each(last - first, chunk, [&](int64_t from, int64_t to) {
        alignas(64) float out[MAX_UNIT_ROWS * 2 * LANES];
        Wanted& wanted = Wanted::of_thread();
        for (int64_t tile = first + from; tile < first + to;) {
            const int tiles = tile + widest <= first + to ? widest : 1;
            for (int64_t pass = 0; pass < passes; ++pass) {
                const int64_t row = first_row(w.kind, rows, pass), count = first_row(w.kind, rows, pass + 1) - row;
                const int32_t* lines = pass ? wanted.take(a.k / 2) : nullptr;
                const Ahead ahead{pass ? 0 : tiles * bytes, wanted.base, lines};
                Kernel kernel = (lines ? choose_kernel<true> : choose_kernel<false>)(w.kind, count, tiles);
                if (on_units(w.kind)) shape_tiles(count);
                kernel(w.tiles + tile * bytes, bytes, ahead, a, row, out);
                for (int64_t r = 0; r < count; ++r)
                    for (int t = 0; t < tiles; ++t)
                        emit(row + r, (tile + t) * LANES, _mm512_loadu_ps(out + (r * tiles + t) * LANES));
            }
            tile += tiles;
        }
        if (on_units(w.kind)) _tile_release();
    });
}
