// What CPUs with AVX2 and those with NEON have in common: no products of bfloat16, so that it is widened to float by a
// shift, and few registers, so that less is summed at once.
#pragma once

// Weights of pairs, [lane][2], are taken in two steps: the even ones, then the odd ones.
using Operand = float;
constexpr int PAIR_STEPS = 2;
using Weights = Floats;

INLINE Weights weights_of(const void* pairs, int step) {
    return parts_from<Floats>((const uint32_t*)pairs, [step](const uint32_t* at) {
        const BitRegister bits = register_at<BitRegister>(at);
        return (FloatRegister)(step ? bits & 0xffff0000 : bits << 16);
    });
}
INLINE Floats dot(const Floats& sum, const Weights& weights, const Operand* operand) {
    return fma(weights, all(*operand), sum);
}

// To the nearest bfloat16, of two equally near ones the even one.
INLINE void put(uint16_t* to, const Floats& x) {
    const auto rounded = [](FloatRegister x) {
        const BitRegister bits = (BitRegister)x, up = bits + 0x7fff + (bits >> 16 & 1);
        const BitRegister kept = x == x ? up : bits | 0x400000;  // what is no number stays none
        return (IntRegister)(kept >> 16);
    };
    put_halves(to, by_parts<Ints>(rounded, x));
}

// Values of a key, sixteen dims, summed with a weight for each key.
constexpr int VALUE_KEYS = 1, VALUE_DIMS = LANES, VALUE_PARTS = 1;
using Values = Floats;
using ValueSums = Floats;
INLINE Values values_of(const uint16_t* key, const uint16_t*) { return from_bf16(key); }
INLINE void add_values(ValueSums& sums, const Values& values, const Operand* weight) {
    sums = fma(values, all(*weight), sums);
}
template <class Emit>
INLINE void emit_values(const ValueSums& sums, const Emit& emit) {
    emit(0, sums);
}

// to[pair][16] = rows[16][16 pairs]; of rows behind the first `count`, zeros.
INLINE void transpose_pairs(const uint16_t* const* rows, int64_t count, int64_t first, uint32_t* to) {
    for (int i = 0; i < LANES; i += REGISTER_LANES)
        for (int pair = 0; pair < LANES; pair += REGISTER_LANES) {
            BitRegister square[REGISTER_LANES];
            for (int k = 0; k < REGISTER_LANES; ++k)
                square[k] = i + k < count ? register_at<BitRegister>(rows[i + k] + first + 2 * pair) : BitRegister{};
            transpose(square);
            for (int k = 0; k < REGISTER_LANES; ++k)
                std::memcpy(to + (pair + k) * LANES + i, &square[k], sizeof square[k]);
        }
}
