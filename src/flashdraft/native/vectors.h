// Sixteen lanes at a time, in as many registers as this CPU's are wide: the one layer between the algorithms and the
// instructions. Arithmetic is the compiler's own on vectors; what it has no word for stands in avx512.h, avx2.h and
// neon.h, of which one is compiled in. Each says
//   REGISTER_LANES         floats of one of its registers
//   MAX_ROWS, MAX_BF16_ROWS, MAX_WIDE_ROWS    how many rows its registers hold the sums of: see linear.h
//   Operand                what bfloat16 weights, keys and values are multiplied with: bfloat16 or float
//   Quantized              what weights in 8 and 4 bits are multiplied with, four by four
//   SMALL_BYTES            where products of bytes are the fastest with weights in 7 bits: dot_small()
//   INT16_ROWS             where products of 16 bits are the fastest: how many rows its registers hold the sums of
// and has the functions that are used below without being defined.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#define INLINE inline __attribute__((always_inline))
#define INLINED __attribute__((always_inline))  // of lambdas

constexpr int LANES = 16;

#if defined(__AVX512BF16__)
constexpr int REGISTER_LANES = 16;
#elif defined(__AVX2__)
constexpr int REGISTER_LANES = 8;
#else
constexpr int REGISTER_LANES = 4;
#endif
constexpr int PARTS = LANES / REGISTER_LANES;

typedef float FloatRegister __attribute__((vector_size(REGISTER_LANES * 4)));
typedef int32_t IntRegister __attribute__((vector_size(REGISTER_LANES * 4)));
typedef uint32_t BitRegister __attribute__((vector_size(REGISTER_LANES * 4)));
typedef uint16_t HalfRegister __attribute__((vector_size(REGISTER_LANES * 2)));  // as many lanes of half the size

struct Floats {
    FloatRegister part[PARTS];
};
struct Ints {
    IntRegister part[PARTS];
};

// Out of op(part of each operand), part by part; without a loop, so that registers stay registers.
template <class Out, class Op, class... In>
INLINE Out by_parts(const Op& op, const In&... in) {
    const auto at = [&](size_t i) INLINED { return op(in.part[i]...); };
    return [&]<size_t... I>(std::index_sequence<I...>) INLINED {
        return Out{{at(I)...}};
    }(std::make_index_sequence<PARTS>());
}

// body(0), body(1) ... body(N - 1), each with its number as a constant: what is indexed by it can lie in registers.
template <int N, class Body>
INLINE void unrolled(const Body& body) {
    [&]<int... I>(std::integer_sequence<int, I...>) INLINED {
        (body(std::integral_constant<int, I>()), ...);
    }(std::make_integer_sequence<int, N>());
}

template <class Register, class T>
INLINE Register register_at(const T* from) {
    Register value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

// Out of the registers that lie one behind the other at `from`, of LANES elements all together.
template <class Out, class T, class Op>
INLINE Out parts_from(const T* from, const Op& op) {
    return [&]<size_t... I>(std::index_sequence<I...>) INLINED {
        return Out{{op(from + I * REGISTER_LANES)...}};
    }(std::make_index_sequence<PARTS>());
}

INLINE Floats zeros() { return Floats{}; }

INLINE Floats load(const float* from) {
    return parts_from<Floats>(from, [](const float* at) { return register_at<FloatRegister>(at); });
}
// To float, or to bfloat16 (in avx512.h and its like): as the memory is.
INLINE void put(float* to, const Floats& x) {
    unrolled<PARTS>([&](auto i) INLINED { std::memcpy(to + i * REGISTER_LANES, &x.part[i], sizeof x.part[i]); });
}

INLINE Floats operator+(const Floats& a, const Floats& b) {
    return by_parts<Floats>([](FloatRegister a, FloatRegister b) { return a + b; }, a, b);
}
INLINE Floats operator-(const Floats& a, const Floats& b) {
    return by_parts<Floats>([](FloatRegister a, FloatRegister b) { return a - b; }, a, b);
}
INLINE Floats operator*(const Floats& a, const Floats& b) {
    return by_parts<Floats>([](FloatRegister a, FloatRegister b) { return a * b; }, a, b);
}
INLINE Floats operator/(const Floats& a, const Floats& b) {
    return by_parts<Floats>([](FloatRegister a, FloatRegister b) { return a / b; }, a, b);
}
INLINE Floats operator-(const Floats& a) {
    return by_parts<Floats>([](FloatRegister a) { return -a; }, a);
}
INLINE Ints operator+(const Ints& a, const Ints& b) {
    return by_parts<Ints>([](IntRegister a, IntRegister b) { return a + b; }, a, b);
}
INLINE Floats abs(const Floats& a) {
    return by_parts<Floats>([](FloatRegister a) { return (FloatRegister)((BitRegister)a & 0x7fffffff); }, a);
}
INLINE Floats to_floats(const Ints& a) {
    return by_parts<Floats>([](IntRegister a) { return __builtin_convertvector(a, FloatRegister); }, a);
}

// Lane by lane: `a` where x < 0, else `b`.
INLINE Floats where_negative(const Floats& x, const Floats& a, const Floats& b) {
    const auto choose = [](FloatRegister x, FloatRegister a, FloatRegister b) { return x < 0 ? a : b; };
    return by_parts<Floats>(choose, x, a, b);
}

// The first `count` lanes of x, the others as in `rest`; any count.
INLINE Floats first_lanes(int64_t count, const Floats& x, const Floats& rest) {
    static constexpr int32_t numbers[LANES] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const int32_t most = count < 0 ? 0 : count > LANES ? LANES : count;
    const Ints lanes = parts_from<Ints>(numbers, [](const int32_t* at) { return register_at<IntRegister>(at); });
    const auto choose = [most](IntRegister lane, FloatRegister x, FloatRegister y) { return lane < most ? x : y; };
    return by_parts<Floats>(choose, lanes, x, rest);
}

// Sixteen bfloat16 at `from`.
INLINE Floats from_bf16(const uint16_t* from) {
    return parts_from<Floats>(from, [](const uint16_t* at) {
        return (FloatRegister)(__builtin_convertvector(register_at<HalfRegister>(at), BitRegister) << 16);
    });
}

#if defined(__AVX512BF16__)
#include "avx512.h"
#elif defined(__AVX2__)
#include "avx2.h"
#else
#include "neon.h"
#endif

// e^x for x <= 0, within 3e-6 of it, relatively: 2^n * p(f), |f| <= log(2) / 2.
INLINE Floats exp_of(Floats x) {
    x = max(x, all(-87.0f));
    const Ints n = nearest(x * all(1.44269504f));
    const Floats whole = to_floats(n);
    Floats f = fma(whole, all(-0.693359375f), x);
    f = fma(whole, all(2.12194440e-4f), f);
    Floats p = all(1.0f / 120);
    for (float c : {1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) p = fma(p, f, all(c));
    return p * by_parts<Floats>([](IntRegister n) { return (FloatRegister)((n + 127) << 23); }, n);
}

// Have a line of memory on its way to the second cache.
INLINE void prefetch(const void* at) { __builtin_prefetch(at, 0, 2); }
