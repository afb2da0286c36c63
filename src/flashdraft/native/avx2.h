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

// 64 bytes, [lane][4], times four quantized activations, which are numbers of 16 bits: those for the even bytes, then
// those for the odd ones. Products of 8 bits would overflow in their sums.
using Quantized = int16_t;
constexpr int BYTE_OFFSET = 0;
struct Bytes {
    Ints even, odd;
};
INLINE Ints raw_bytes(const uint8_t* from) {
    return parts_from<Ints>((const uint32_t*)from, [](const uint32_t* at) { return register_at<IntRegister>(at); });
}
INLINE Bytes halved(const Ints& bytes, int shift, int32_t mask) {
    const auto part = [&](int by) {
        return by_parts<Ints>([&](IntRegister all) { return (IntRegister)((BitRegister)all >> by & mask); }, bytes);
    };
    return {part(shift), part(8 + shift)};
}
INLINE Bytes whole_bytes(const uint8_t* from) { return halved(raw_bytes(from), 0, 0x00ff00ff); }
INLINE Bytes low_halves(const uint8_t* from) { return halved(raw_bytes(from), 0, 0x000f000f); }
INLINE Bytes high_halves(const uint8_t* from) { return halved(raw_bytes(from), 4, 0x000f000f); }
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
INLINE Ints dot(const Ints& sum, const Bytes& bytes, const Quantized* four) {
    return dot_pair(dot_pair(sum, bytes.even, four), bytes.odd, four + 2);
}
INLINE __m256i packed(const Ints& x) {
    const __m256i by_quarters = _mm256_packs_epi32((__m256i)x.part[0], (__m256i)x.part[1]);
    return _mm256_permute4x64_epi64(by_quarters, 0b11011000);
}
INLINE void put_int16(int16_t* to, const Ints& x) { _mm256_storeu_si256((__m256i*)to, packed(x)); }
// Sixteen integers of -127 to 127.
INLINE void put_quantized(Quantized* to, const Ints& x) {
    const __m256i swapped = _mm256_shufflehi_epi16(_mm256_shufflelo_epi16(packed(x), 0b11011000), 0b11011000);
    _mm256_storeu_si256((__m256i*)to, swapped);
}

#include "narrow.h"
