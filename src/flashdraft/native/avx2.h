// vectors.h on CPUs with AVX2, FMA and F16C: sixteen lanes are two registers, of which there are sixteen.
#pragma once

#include <immintrin.h>

constexpr int MAX_ROWS = 4, MAX_BF16_ROWS = 6, MAX_WIDE_ROWS = 3;
// Products of 16 bits take half as many instructions as those of floats, and add up without rounding.
#define INT16_ROWS 6

INLINE Floats all(float x) { return {{_mm256_set1_ps(x), _mm256_set1_ps(x)}}; }
INLINE Floats fma(const Floats& a, const Floats& b, const Floats& c) {
    const auto one = [](__m256 a, __m256 b, __m256 c) { return _mm256_fmadd_ps(a, b, c); };
    return by_parts<Floats>(one, a, b, c);
}
INLINE Floats max(const Floats& a, const Floats& b) {
    return by_parts<Floats>([](__m256 a, __m256 b) { return _mm256_max_ps(a, b); }, a, b);
}
INLINE float sum_of(const Floats& a) {
    const __m256 eight = a.part[0] + a.part[1];
    const __m128 four = _mm256_castps256_ps128(eight) + _mm256_extractf128_ps(eight, 1);
    const __m128 two = four + _mm_movehl_ps(four, four);
    return two[0] + two[1];
}
INLINE float max_of(const Floats& a) {
    const __m256 eight = _mm256_max_ps(a.part[0], a.part[1]);
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
INLINE int32_t sum_of(const Ints& a) {
    const IntRegister eight = a.part[0] + a.part[1];
    int32_t sum = 0;
    for (int i = 0; i < REGISTER_LANES; ++i) sum += eight[i];
    return sum;
}
INLINE Ints nearest(const Floats& a) {
    return by_parts<Ints>([](__m256 a) { return (IntRegister)_mm256_cvtps_epi32(a); }, a);
}

// Bit i: whether lane i of x is `least` or more.
INLINE uint32_t at_least(const Floats& x, float least) {
    const auto bits = [&](int i) {
        return _mm256_movemask_ps(_mm256_cmp_ps(x.part[i], _mm256_set1_ps(least), _CMP_GE_OQ));
    };
    return bits(0) | bits(1) << REGISTER_LANES;
}

INLINE Floats from_half(const uint8_t* from) {
    return parts_from<Floats>((const uint16_t*)from, [](const uint16_t* at) {
        return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)at));
    });
}

// Sixteen integers, unsigned of 16 bits.
INLINE void put_halves(uint16_t* to, const Ints& x) {
    const __m256i packed = _mm256_packus_epi32((__m256i)x.part[0], (__m256i)x.part[1]);
    _mm256_storeu_si256((__m256i*)to, _mm256_permute4x64_epi64(packed, 0b11011000));
}

// A square of 32 bits each, its rows made its columns.
INLINE void transpose(BitRegister (&r)[8]) {
    __m256i t[8], u[8];
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_epi32((__m256i)r[i], (__m256i)r[i + 1]);
        t[i + 1] = _mm256_unpackhi_epi32((__m256i)r[i], (__m256i)r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int k = 0; k < 2; ++k) {
            u[i + 2 * k] = _mm256_unpacklo_epi64(t[i + k], t[i + k + 2]);
            u[i + 2 * k + 1] = _mm256_unpackhi_epi64(t[i + k], t[i + k + 2]);
        }
    for (int i = 0; i < 4; ++i) {
        r[i] = (BitRegister)_mm256_permute2x128_si256(u[i], u[i + 4], 0x20);
        r[i + 4] = (BitRegister)_mm256_permute2x128_si256(u[i], u[i + 4], 0x31);
    }
}

// 64 bytes, [lane][4], times four quantized activations. Of weights in 8 bits 128 is taken.
using Quantized = int8_t;
constexpr int BYTE_OFFSET = 128;
using Bytes = Ints;
INLINE Ints raw_bytes(const uint8_t* from) {
    return parts_from<Ints>((const uint32_t*)from, [](const uint32_t* at) { return register_at<IntRegister>(at); });
}
INLINE Bytes changed(const uint8_t* from, int shift, int32_t mask, int32_t flip) {
    const auto change = [&](IntRegister all) { return (IntRegister)(((BitRegister)all >> shift & mask) ^ flip); };
    return by_parts<Ints>(change, raw_bytes(from));
}
INLINE Bytes whole_bytes(const uint8_t* from) { return changed(from, 0, -1, int32_t(0x80808080)); }
INLINE Bytes low_halves(const uint8_t* from) { return changed(from, 0, 0x0f0f0f0f, 0); }
INLINE Bytes high_halves(const uint8_t* from) { return changed(from, 4, 0x0f0f0f0f, 0); }
INLINE __m256i all_of(const Quantized* four) {
    int32_t all;
    std::memcpy(&all, four, sizeof all);
    return _mm256_set1_epi32(all);
}
// sum + products of bytes, each two already added up, in 16 bits.
INLINE IntRegister widened(IntRegister sum, __m256i products) {
    sum += (IntRegister)_mm256_madd_epi16(products, _mm256_set1_epi16(1));
    asm("" : "+x"(sum));  // now: the compiler would hold all products and add them at last
    return sum;
}
// Two products of weights in 7 bits fit 16 bits, which is what this CPU adds up; of 8 bits signs change sides first.
#define SMALL_BYTES
INLINE Ints dot_small(const Ints& sum, const Bytes& bytes, const Quantized* four) {
    const __m256i x = all_of(four);
    const auto add = [&](IntRegister sum, IntRegister w) { return widened(sum, _mm256_maddubs_epi16((__m256i)w, x)); };
    return by_parts<Ints>(add, sum, bytes);
}
INLINE Ints dot(const Ints& sum, const Bytes& bytes, const Quantized* four) {
    const __m256i x = all_of(four);
    const auto add = [&](IntRegister sum, IntRegister w) {
        const __m256i size = _mm256_abs_epi8((__m256i)w);
        return widened(sum, _mm256_maddubs_epi16(size, _mm256_sign_epi8(x, (__m256i)w)));
    };
    return by_parts<Ints>(add, sum, bytes);
}
// Weights int16 [lane][2] times two activations.
INLINE Ints dot_pair(const Ints& sum, const Ints& weights, const int16_t* two) {
    int32_t both;
    std::memcpy(&both, two, sizeof both);
    const __m256i pair = _mm256_set1_epi32(both);
    return by_parts<Ints>(
        [&](IntRegister sum, IntRegister weights) {
            sum += (IntRegister)_mm256_madd_epi16((__m256i)weights, pair);
            asm("" : "+x"(sum));  // now: the compiler would hold all products and add them at last
            return sum;
        },
        sum, weights);
}
INLINE __m256i packed(const Ints& x) {
    const __m256i by_quarters = _mm256_packs_epi32((__m256i)x.part[0], (__m256i)x.part[1]);
    return _mm256_permute4x64_epi64(by_quarters, 0b11011000);
}
INLINE void put_int16(int16_t* to, const Ints& x) { _mm256_storeu_si256((__m256i*)to, packed(x)); }
// Sixteen integers of -127 to 127.
INLINE void put_quantized(Quantized* to, const Ints& x) {
    const __m256i halves = packed(x);
    const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1));
    _mm_storeu_si128((__m128i*)to, bytes);
}

#include "narrow.h"
