// SPDX-License-Identifier: Apache-2.0
// Sums, products and conversions over one row, besides products of panels.
//
// Every sum over a row is one fixed tree that depends on the row's length alone; that is what the row law rests on.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "lanes.hpp"

namespace experts {

// To the nearest, ties to even; NaN stays NaN.
inline uint16_t to_bf16(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    if (x != x) return static_cast<uint16_t>((bits >> 16) | 0x40u);
    return static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

inline float from_bf16(uint16_t half) {
    const uint32_t bits = static_cast<uint32_t>(half) << 16;
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

// Sixteen bf16 numbers.
inline Lanes load(const uint16_t *from) {
    Lanes out;
#if defined(__AVX512F__)
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(from)));
    out.part[0] = (Part)_mm512_slli_epi32(wide, 16);
#else
    typedef uint16_t Halves __attribute__((vector_size(WIDTH * 2)));
    for (int index = 0; index < PARTS; ++index) {
        Halves halves;
        std::memcpy(&halves, from + index * WIDTH, sizeof halves);
        out.part[index] = (Part)(__builtin_convertvector(halves, PartInt) << 16);
    }
#endif
    return out;
}

inline Lanes larger(const Lanes &a, const Lanes &b) {
    return each([](Part x, Part y) { return x > y ? x : y; }, a, b);
}

// Sum of the lanes as a tree of halves.
inline float sum(const Lanes &lanes) {
    float x[16];
    store(x, lanes);
    for (int width = 8; width > 0; width /= 2) {
        for (int lane = 0; lane < width; ++lane) x[lane] = x[lane] + x[lane + width];
    }
    return x[0];
}

inline float largest(const Lanes &lanes) {
    float x[16];
    store(x, lanes);
    float top = x[0];
    for (int lane = 1; lane < 16; ++lane) top = x[lane] > top ? x[lane] : top;
    return top;
}

// sum_i a[i] * b[i] over four running sums, then a tree.
inline float dot(const float *a, const float *b, int64_t n) {
    Lanes sums[4] = {};
    int64_t at = 0;
    for (; at + 64 <= n; at += 64) {
        for (int part = 0; part < 4; ++part) {
            sums[part] = fused(load(a + at + 16 * part), load(b + at + 16 * part), sums[part]);
        }
    }
    for (int part = 0; at + 16 <= n; at += 16, ++part) sums[part] = fused(load(a + at), load(b + at), sums[part]);
    if (at < n) sums[3] = fused(load_first(a + at, n - at), load_first(b + at, n - at), sums[3]);
    return sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

// The same in fp64, over 32 running sums that are rounded after product and sum.
inline double dot(const double *a, const double *b, int64_t n) {
    double sums[32] = {};
    int64_t at = 0;
    for (; at + 32 <= n; at += 32) {
        for (int lane = 0; lane < 32; ++lane) sums[lane] = sums[lane] + a[at + lane] * b[at + lane];
    }
    for (int lane = 0; at < n; ++at, ++lane) sums[lane] = sums[lane] + a[at] * b[at];
    for (int width = 16; width > 0; width /= 2) {
        for (int lane = 0; lane < width; ++lane) sums[lane] = sums[lane] + sums[lane + width];
    }
    return sums[0];
}

}  // namespace experts
