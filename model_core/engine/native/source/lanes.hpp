// SPDX-License-Identifier: Apache-2.0
// Sixteen floats that are computed side by side, on whatever vectors the processor has.
//
// Products and sums are fused exactly where fused() is called, on every path alike; on a processor without such an
// instruction they are rounded twice, on every path alike.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace experts {

#if defined(__AVX512F__)
constexpr int WIDTH = 16;
#elif defined(__AVX2__) && defined(__FMA__)
constexpr int WIDTH = 8;
#else
constexpr int WIDTH = 4;
#endif
constexpr int PARTS = 16 / WIDTH;

typedef float Part __attribute__((vector_size(WIDTH * 4)));
typedef int32_t PartInt __attribute__((vector_size(WIDTH * 4)));
typedef float PartAnywhere __attribute__((vector_size(WIDTH * 4), aligned(4), may_alias));
typedef int32_t PartIntAnywhere __attribute__((vector_size(WIDTH * 4), aligned(4), may_alias));
typedef int8_t PartBytes __attribute__((vector_size(WIDTH), aligned(1), may_alias));

inline Part fused_part(Part a, Part b, Part c) {
#if defined(__AVX512F__)
    return (Part)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__) && defined(__FMA__)
    return (Part)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
    return (Part)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}

inline Part widened_part(const int8_t *bytes) {
#if defined(__AVX512F__)
    return (Part)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(bytes))));
#elif defined(__AVX2__) && defined(__FMA__)
    return (Part)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(bytes))));
#else
    return __builtin_convertvector(*reinterpret_cast<const PartBytes *>(bytes), Part);
#endif
}

struct Lanes {
    Part part[PARTS];
};

// Applies a function of parts to the parts of Lanes.
template <class Function, class... More>
inline Lanes each(const Function &function, const More &...lanes) {
    Lanes out;
#pragma GCC unroll 4
    for (int index = 0; index < PARTS; ++index) out.part[index] = function(lanes.part[index]...);
    return out;
}

inline Lanes splat(float x) {
    Lanes out;
    for (int index = 0; index < PARTS; ++index) out.part[index] = x - Part{};
    return out;
}

inline Lanes zeros() { return Lanes{}; }

inline Lanes load(const float *from) {
    Lanes out;
    for (int index = 0; index < PARTS; ++index) {
        out.part[index] = *reinterpret_cast<const PartAnywhere *>(from + index * WIDTH);
    }
    return out;
}

// The first n of 16 lanes (0 to 16), zeros behind them.
inline Lanes load_first(const float *from, int64_t n) {
    if (n >= 16) return load(from);
#if defined(__AVX512F__)
    return Lanes{{(Part)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1u), from)}};
#else
    float whole[16] = {};
    std::memcpy(whole, from, static_cast<size_t>(n) * sizeof(float));
    return load(whole);
#endif
}

inline void store(float *to, const Lanes &lanes) {
    for (int index = 0; index < PARTS; ++index) {
        *reinterpret_cast<PartAnywhere *>(to + index * WIDTH) = lanes.part[index];
    }
}

inline void store_first(float *to, const Lanes &lanes, int64_t n) {
    if (n >= 16) return store(to, lanes);
#if defined(__AVX512F__)
    _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << n) - 1u), (__m512)lanes.part[0]);
#else
    float whole[16];
    store(whole, lanes);
    std::memcpy(to, whole, static_cast<size_t>(n) * sizeof(float));
#endif
}

inline Lanes load_bytes(const int8_t *from) {
    Lanes out;
    for (int index = 0; index < PARTS; ++index) out.part[index] = widened_part(from + index * WIDTH);
    return out;
}

// The first or the second of the two bf16 numbers of each lane; the first one is in its lower half.
inline Lanes load_half(const uint32_t *from, int half) {
    Lanes out;
    for (int index = 0; index < PARTS; ++index) {
        const PartInt bits = *reinterpret_cast<const PartIntAnywhere *>(from + index * WIDTH);
        out.part[index] = (Part)(half == 0 ? bits << 16 : bits & static_cast<int32_t>(0xFFFF0000u));
    }
    return out;
}

inline Lanes operator+(const Lanes &a, const Lanes &b) {
    return each([](Part x, Part y) { return x + y; }, a, b);
}
inline Lanes operator-(const Lanes &a, const Lanes &b) {
    return each([](Part x, Part y) { return x - y; }, a, b);
}
inline Lanes operator*(const Lanes &a, const Lanes &b) {
    return each([](Part x, Part y) { return x * y; }, a, b);
}
inline Lanes operator/(const Lanes &a, const Lanes &b) {
    return each([](Part x, Part y) { return x / y; }, a, b);
}

// a * b + c, rounded once.
inline Lanes fused(const Lanes &a, const Lanes &b, const Lanes &c) {
    return each([](Part x, Part y, Part z) { return fused_part(x, y, z); }, a, b, c);
}

// exp, the same on every path: below 2 ulp between -87 and 88.72, 0 below -103, +inf above; NaN stays NaN.
inline Part exp_part(Part x) {
    const Part highest = 88.7228394f - Part{}, lowest = -103.97f - Part{}, zero = Part{};
    const Part bounded = x > highest ? highest : (x < lowest ? lowest : x);
    // bounded = n ln 2 + rest; the constant rounds to whole numbers.
    const Part magic = 12582912.0f - Part{};
    const Part n = fused_part(bounded, 1.44269504f - Part{}, magic) - magic;
    Part rest = fused_part(n, -0.693359375f - Part{}, bounded);
    rest = fused_part(n, 2.12194440e-4f - Part{}, rest);
    Part sum = 1.9875691500e-4f - Part{};
    sum = fused_part(sum, rest, 1.3981999507e-3f - Part{});
    sum = fused_part(sum, rest, 8.3334519073e-3f - Part{});
    sum = fused_part(sum, rest, 4.1665795894e-2f - Part{});
    sum = fused_part(sum, rest, 1.6666665459e-1f - Part{});
    sum = fused_part(sum, rest, 5.0000001201e-1f - Part{});
    sum = fused_part(sum, rest * rest, rest) + 1.0f;
    // In two steps, since 2^128 and 2^-150 are no floats.
    const PartInt power = __builtin_convertvector(n == n ? n : zero, PartInt), half = power >> 1;
    sum = sum * (Part)((half + 127) << 23) * (Part)((power - half + 127) << 23);
    const Part infinite = __builtin_inff() - Part{};
    sum = x > highest ? infinite : (x < lowest ? zero : sum);
    return x == x ? sum : x;
}

inline Lanes exp_lanes(const Lanes &x) {
    return each([](Part one) { return exp_part(one); }, x);
}

// gate * sigmoid(gate) * up
inline Lanes gated(const Lanes &gate, const Lanes &up) {
    const Lanes falling = exp_lanes(zeros() - gate);
    return gate / (splat(1.0f) + falling) * up;
}

}  // namespace experts
