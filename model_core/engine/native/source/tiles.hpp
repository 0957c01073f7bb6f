// SPDX-License-Identifier: Apache-2.0
// The innermost products: a few rows times a few panels, with every sum in a register.
//
// Each sum starts at zero and takes one input after the other, whatever the sizes of the tile: this is what keeps the
// row law.
#pragma once

#include <algorithm>
#include <utility>

#include "shapes.hpp"

namespace experts {

// What a tile fetches ahead of its reads, all its panels together: memory answers late, and few streams are foreseen.
constexpr int64_t IN_FLIGHT_BYTES = 8192;

// The weights of one input; half: which of a pair.
template <int KIND>
inline Lanes weights(const char *from, int half) {
    if constexpr (KIND == I8) return load_bytes(reinterpret_cast<const int8_t *>(from));
    if constexpr (KIND == BF16) return load_half(reinterpret_cast<const uint32_t *>(from), half);
    return load(reinterpret_cast<const float *>(from));
}

#if defined(__AVX512BF16__)
// Adds to N panels from a given one: pairs of inputs of R rows times a pair of weights of each output.
template <int R, int P, int N>
inline void add_pairs(Lanes (&sums)[R][P], int first, const __m512i (&w)[N], const float *x) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
        int32_t pair;
        std::memcpy(&pair, x + r, 4);
        const auto value = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 16
        for (int p = 0; p < N; ++p) {
            Part &sum = sums[r][first + p].part[0];
            sum = (Part)_mm512_dpbf16_ps((__m512)sum, (__m512bh)w[p], value);
        }
    }
}
#endif

template <int KIND, int R, int P>
inline void one_step(Lanes (&sums)[R][P], const char *panels, const float *x) {
    constexpr int64_t BYTES = step_bytes(KIND);
    if constexpr (KIND == BF16 && PAIRS_AT_ONCE) {
#if defined(__AVX512BF16__)
        __m512i w[P];
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p) w[p] = _mm512_loadu_si512(panels + p * BYTES);
        add_pairs<R, P>(sums, 0, w, x);
#endif
    } else {
        const auto take = [&](int half) __attribute__((always_inline)) {
            Lanes w[P];
#pragma GCC unroll 16
            for (int p = 0; p < P; ++p) w[p] = weights<KIND>(panels + p * BYTES, half);
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r) {
                const Lanes value = splat(x[half * R + r]);
#pragma GCC unroll 16
                for (int p = 0; p < P; ++p) sums[r][p] = fused(w[p], value, sums[r][p]);
            }
        };
        take(0);
        // Without products of pairs all first inputs come first, then all second ones.
        if constexpr (x_per_step(KIND) == 2) take(1);
    }
}

template <int R, int P>
inline void zero_sums(Lanes (&sums)[R][P]) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p) sums[r][p] = zeros();
    }
}

template <int KIND, int R, int P>
inline void write_sums(const Lanes (&sums)[R][P], const Target &target) {
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) {
        const int64_t width = target.width - p * LANES;
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            float *to = target.y + r * target.stride + p * LANES;
            Lanes sum = sums[r][p];
            if constexpr (KIND == I8) sum = sum * load(target.scales + p * LANES);
            if (target.add) sum = load_first(to, width) + sum;
            store_first(to, sum, width);
        }
    }
}

// R rows times P panels that stand side by side in one band.
template <int KIND, int R, int P>
void tile(const char *panels, int64_t steps, const float *x, const Target &target) {
    constexpr int64_t BYTES = step_bytes(KIND);
    const int64_t step_bytes = target.step_bytes;
    Lanes sums[R][P];
    zero_sums(sums);
    // Towards the end of its panels a tile fetches the beginning of those that come next.
    constexpr int64_t LINE_STEPS = 64 / BYTES, STEPS_AHEAD = IN_FLIGHT_BYTES / P / BYTES;
    const int64_t near_end = std::max<int64_t>(0, steps - STEPS_AHEAD) / LINE_STEPS * LINE_STEPS;
    // Lines of some steps: side by side where a step fills them, else spread over all of these steps.
    const int64_t apart = BYTES == 64 ? 64 : step_bytes * LINE_STEPS / P;
    int64_t ahead = STEPS_AHEAD * step_bytes;
    for (int64_t step = 0; step < steps; step += LINE_STEPS) {
        const char *here = panels + step * step_bytes;
        if constexpr (P >= 2) {
            if (step == near_end) ahead += target.next - panels - steps * step_bytes;
#pragma GCC unroll 16
            for (int p = 0; p < P; ++p) __builtin_prefetch(here + p * apart + ahead);
        }
        const int64_t end = std::min(steps, step + LINE_STEPS);
        for (int64_t inner = step; inner < end; ++inner) {
            one_step<KIND, R, P>(sums, panels + inner * step_bytes, x + inner * R * x_per_step(KIND));
        }
    }
    write_sums<KIND, R, P>(sums, target);
}

template <int KIND, int R, int P>
constexpr TileFunction tile_or_none() {
    if constexpr (P <= most_panels(R)) {
        return tile<KIND, R, P>;
    } else {
        return nullptr;
    }
}

template <int KIND, int... R>
const TileRow &tiles_by_rows(int rows, std::integer_sequence<int, R...>) {
    static constexpr TileRow table[] = {
        {{tile_or_none<KIND, R + 1, 1>(), tile_or_none<KIND, R + 1, 2>(), tile_or_none<KIND, R + 1, 4>()}}...};
    return table[rows - 1];
}

template <int KIND>
const TileRow &tiles(int rows) {
    return tiles_by_rows<KIND>(rows, std::make_integer_sequence<int, MAX_ROWS>());
}

}  // namespace experts
