// vectors.h on ARM CPUs with NEON and its products of 8 bits: sixteen lanes are four registers, of which there are 32.
#pragma once

#include <arm_neon.h>

constexpr int MAX_ROWS = 4, MAX_BF16_ROWS = MAX_ROWS, MAX_WIDE_ROWS = 2;

INLINE Floats all(float x) {
    const float32x4_t four = vdupq_n_f32(x);
    return {{four, four, four, four}};
}
INLINE Floats fma(const Floats& a, const Floats& b, const Floats& c) {
    const auto one = [](float32x4_t a, float32x4_t b, float32x4_t c) { return (FloatRegister)vfmaq_f32(c, a, b); };
    return by_parts<Floats>(one, a, b, c);
}
INLINE Floats max(const Floats& a, const Floats& b) {
    return by_parts<Floats>([](float32x4_t a, float32x4_t b) { return (FloatRegister)vmaxq_f32(a, b); }, a, b);
}
INLINE float sum_of(const Floats& a) { return vaddvq_f32((a.part[0] + a.part[1]) + (a.part[2] + a.part[3])); }
INLINE float max_of(const Floats& a) {
    return vmaxvq_f32(vmaxq_f32(vmaxq_f32(a.part[0], a.part[1]), vmaxq_f32(a.part[2], a.part[3])));
}
INLINE int32_t sum_of(const Ints& a) { return vaddvq_s32((a.part[0] + a.part[1]) + (a.part[2] + a.part[3])); }
INLINE Ints nearest(const Floats& a) {
    return by_parts<Ints>([](float32x4_t a) { return (IntRegister)vcvtnq_s32_f32(a); }, a);
}

// Bit i: whether lane i of x is `least` or more.
INLINE uint32_t at_least(const Floats& x, float least) {
    const BitRegister bits = {1, 2, 4, 8};
    uint32_t found = 0;
    for (int i = 0; i < PARTS; ++i) {
        const BitRegister lanes = (BitRegister)vcgeq_f32(x.part[i], vdupq_n_f32(least));
        found |= vaddvq_u32(lanes & bits) << i * REGISTER_LANES;
    }
    return found;
}

INLINE Floats from_half(const uint8_t* from) {
    return parts_from<Floats>((const uint16_t*)from, [](const uint16_t* at) {
        return (FloatRegister)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(at)));
    });
}

// Sixteen integers, unsigned of 16 bits.
INLINE void put_halves(uint16_t* to, const Ints& x) {
    for (int i = 0; i < PARTS; ++i) vst1_u16(to + i * REGISTER_LANES, vmovn_u32((uint32x4_t)x.part[i]));
}

// A square of 32 bits each, its rows made its columns.
INLINE void transpose(BitRegister (&r)[4]) {
    const uint32x4x2_t a = vzipq_u32(r[0], r[2]), b = vzipq_u32(r[1], r[3]);
    const uint32x4x2_t front = vzipq_u32(a.val[0], b.val[0]), back = vzipq_u32(a.val[1], b.val[1]);
    r[0] = (BitRegister)front.val[0];
    r[1] = (BitRegister)front.val[1];
    r[2] = (BitRegister)back.val[0];
    r[3] = (BitRegister)back.val[1];
}

// 64 bytes, [lane][4], times four quantized activations. Both sides have a sign: of weights in 8 bits 128 is taken.
using Quantized = int8_t;
constexpr int BYTE_OFFSET = 128;
struct Bytes {
    int8x16_t part[PARTS];
};
template <class Op>
INLINE Bytes lines_of(const uint8_t* from, const Op& op) {
    return {{vreinterpretq_s8_u8(op(vld1q_u8(from))), vreinterpretq_s8_u8(op(vld1q_u8(from + 16))),
             vreinterpretq_s8_u8(op(vld1q_u8(from + 32))), vreinterpretq_s8_u8(op(vld1q_u8(from + 48)))}};
}
INLINE Bytes whole_bytes(const uint8_t* from) {
    return lines_of(from, [](uint8x16_t all) { return veorq_u8(all, vdupq_n_u8(BYTE_OFFSET)); });
}
INLINE Bytes low_halves(const uint8_t* from) {
    return lines_of(from, [](uint8x16_t all) { return vandq_u8(all, vdupq_n_u8(15)); });
}
INLINE Bytes high_halves(const uint8_t* from) {
    return lines_of(from, [](uint8x16_t all) { return vshrq_n_u8(all, 4); });
}
INLINE Ints dot(const Ints& sum, const Bytes& bytes, const Quantized* four) {
    int32_t both;
    std::memcpy(&both, four, sizeof both);
    const int8x16_t all_four = vreinterpretq_s8_s32(vdupq_n_s32(both));
    const auto add = [&](IntRegister sum, int8x16_t bytes) {
        sum = (IntRegister)vdotq_s32(sum, bytes, all_four);
        asm("" : "+w"(sum));  // now: the compiler would load all of a block before
        return sum;
    };
    return by_parts<Ints>(add, sum, bytes);
}
// Sixteen integers of -127 to 127.
INLINE void put_quantized(Quantized* to, const Ints& x) {
    const int16x8_t low = vcombine_s16(vmovn_s32(x.part[0]), vmovn_s32(x.part[1]));
    const int16x8_t high = vcombine_s16(vmovn_s32(x.part[2]), vmovn_s32(x.part[3]));
    vst1q_s8(to, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
}

#include "narrow.h"
