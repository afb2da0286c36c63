// vectors.h on CPUs with AVX-512 bf16 and VNNI: sixteen lanes are one register.
#pragma once

#include <immintrin.h>

constexpr int MAX_ROWS = 8, MAX_BF16_ROWS = 14, MAX_WIDE_ROWS = MAX_BF16_ROWS;

INLINE Floats all(float x) { return {{_mm512_set1_ps(x)}}; }
INLINE Floats fma(const Floats& a, const Floats& b, const Floats& c) {
    return {{_mm512_fmadd_ps(a.part[0], b.part[0], c.part[0])}};
}
INLINE Floats max(const Floats& a, const Floats& b) { return {{_mm512_max_ps(a.part[0], b.part[0])}}; }
INLINE float sum_of(const Floats& a) { return _mm512_reduce_add_ps(a.part[0]); }
INLINE float max_of(const Floats& a) { return _mm512_reduce_max_ps(a.part[0]); }
INLINE int32_t sum_of(const Ints& a) { return _mm512_reduce_add_epi32((__m512i)a.part[0]); }
INLINE Ints nearest(const Floats& a) { return {{(IntRegister)_mm512_cvtps_epi32(a.part[0])}}; }

// Bit i: whether lane i of x is `least` or more.
INLINE uint32_t at_least(const Floats& x, float least) {
    return _mm512_cmp_ps_mask(x.part[0], _mm512_set1_ps(least), _CMP_GE_OQ);
}

INLINE Floats from_half(const uint8_t* from) { return {{_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from))}}; }
INLINE void put(uint16_t* to, const Floats& x) {
    _mm256_storeu_si256((__m256i*)to, (__m256i)_mm512_cvtneps_pbh(x.part[0]));
}

// bfloat16 weights [lane][2] times two operands: one instruction.
using Operand = uint16_t;
constexpr int PAIR_STEPS = 1;
using Weights = __m512bh;

INLINE Weights weights_of(const void* pairs, int) { return (__m512bh)_mm512_loadu_si512(pairs); }
INLINE Floats dot(const Floats& sum, Weights weights, const Operand* pair) {
    int32_t both;
    std::memcpy(&both, pair, sizeof both);
    return {{_mm512_dpbf16_ps(sum.part[0], weights, (__m512bh)_mm512_set1_epi32(both))}};
}

// Values of two keys, 32 dims of each, summed with a weight for each key. unpack works within quarters of a register:
// the sums' dims are put back in order at last.
constexpr int VALUE_KEYS = 2, VALUE_DIMS = 32, VALUE_PARTS = 2;
struct Values {
    __m512bh even, odd;
};
struct ValueSums {
    __m512 low, high;
};
// `two`: null where there is no second key.
INLINE Values values_of(const uint16_t* one, const uint16_t* two) {
    const __m512i a = _mm512_loadu_si512(one), b = two ? _mm512_loadu_si512(two) : _mm512_setzero_si512();
    return {(__m512bh)_mm512_unpacklo_epi16(a, b), (__m512bh)_mm512_unpackhi_epi16(a, b)};
}
INLINE void add_values(ValueSums& sums, const Values& values, const Operand* weights) {
    int32_t both;
    std::memcpy(&both, weights, sizeof both);
    const __m512bh pair = (__m512bh)_mm512_set1_epi32(both);
    sums.low = _mm512_dpbf16_ps(sums.low, values.even, pair);
    sums.high = _mm512_dpbf16_ps(sums.high, values.odd, pair);
}
template <class Emit>
INLINE void emit_values(const ValueSums& sums, const Emit& emit) {
    const __m512i front = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i back = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
    emit(0, Floats{{_mm512_permutex2var_ps(sums.low, front, sums.high)}});
    emit(LANES, Floats{{_mm512_permutex2var_ps(sums.low, back, sums.high)}});
}

// 64 bytes, [lane][4], times four quantized activations.
using Quantized = int8_t;
constexpr int BYTE_OFFSET = 0;
using Bytes = __m512i;
INLINE Bytes whole_bytes(const uint8_t* from) { return _mm512_loadu_si512(from); }
INLINE Bytes low_halves(const uint8_t* from) {
    return _mm512_and_si512(_mm512_loadu_si512(from), _mm512_set1_epi8(15));
}
INLINE Bytes high_halves(const uint8_t* from) {
    return _mm512_and_si512(_mm512_srli_epi16(_mm512_loadu_si512(from), 4), _mm512_set1_epi8(15));
}
INLINE Ints dot(const Ints& sum, Bytes bytes, const Quantized* four) {
    int32_t all_four;
    std::memcpy(&all_four, four, sizeof all_four);
    return {{(IntRegister)_mm512_dpbusd_epi32((__m512i)sum.part[0], bytes, _mm512_set1_epi32(all_four))}};
}
// Sixteen integers of -127 to 127.
INLINE void put_quantized(Quantized* to, const Ints& x) {
    _mm_storeu_si128((__m128i*)to, _mm512_cvtsepi32_epi8((__m512i)x.part[0]));
}

// to[pair][16] = rows[16][16 pairs]; of rows behind the first `count`, zeros.
INLINE void transpose_pairs(const uint16_t* const* rows, int64_t count, int64_t first, uint32_t* to) {
    __m512i r[16], t[16];
    for (int i = 0; i < 16; ++i) r[i] = i < count ? _mm512_loadu_si512(rows[i] + first) : _mm512_setzero_si512();
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; ++i)
        for (int half = 0; half < 2; ++half) {
            __m512i a = r[half * 8 + i], b = r[half * 8 + 4 + i];
            t[half * 8 + i] = _mm512_shuffle_i32x4(a, b, 0x88);
            t[half * 8 + 4 + i] = _mm512_shuffle_i32x4(a, b, 0xdd);
        }
    for (int i = 0; i < 8; ++i) {
        _mm512_storeu_si512(to + i * LANES, _mm512_shuffle_i32x4(t[i], t[8 + i], 0x88));
        _mm512_storeu_si512(to + (8 + i) * LANES, _mm512_shuffle_i32x4(t[i], t[8 + i], 0xdd));
    }
}
