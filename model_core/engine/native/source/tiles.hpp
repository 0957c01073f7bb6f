// SPDX-License-Identifier: Apache-2.0
// The innermost products: a few rows times a few panels, with every sum in a register.
//
// Each sum starts at zero and takes one input after the other, whatever the sizes of the tile: this is what keeps the
// row law. Rows come packed: for each step the R inputs (bf16: pairs of inputs) of the tile's rows side by side.
#pragma once

#include "lanes.hpp"
#include "panels.hpp"

namespace experts {

#if defined(__AVX512F__)
constexpr int MAX_ROWS = 14, MAX_PANELS = 4, MAX_SUMS = 28;
#else
constexpr int MAX_ROWS = 6, MAX_PANELS = 4, MAX_SUMS = 6;
#endif

#if defined(__AVX512BF16__)
constexpr bool PAIRS_AT_ONCE = true;
#else
constexpr bool PAIRS_AT_ONCE = false;
#endif

// Panels that a tile of some rows takes at once: as many as its sums leave registers for.
constexpr int most_panels(int rows) {
    int panels = MAX_PANELS;
    while (panels > 1 && rows * panels > MAX_SUMS) panels /= 2;
    return panels;
}

// Where the results of a tile go.
struct Target {
    float *y;
    int64_t stride;
    int64_t width;        // outputs from the first panel on that exist
    const float *scales;  // from the first panel on, or null
    bool add;
};

// Floats (or pairs) of packed rows per step and row.
constexpr int x_per_step(int kind) { return kind == BF16 && !PAIRS_AT_ONCE ? 2 : 1; }
constexpr int64_t step_bytes(int kind) { return kind == I8 ? LANES : LANES * 4; }
inline int64_t steps_of(const Matrix &matrix) { return matrix.kind == BF16 ? (matrix.n_in + 1) / 2 : matrix.n_in; }

// How far ahead of its reads a tile fetches panels: few rows read them faster than the processor foresees.
constexpr int64_t FETCH_AHEAD_BYTES = 2048;

template <int KIND, int R, int P>
inline void one_step(Lanes (&sums)[R][P], const char *panels, int64_t panel_bytes, const float *x) {
    if constexpr (KIND == BF16 && PAIRS_AT_ONCE) {
#if defined(__AVX512BF16__)
        __m512bh w[P];
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p) w[p] = (__m512bh)_mm512_loadu_si512(panels + p * panel_bytes);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            int32_t pair;
            std::memcpy(&pair, x + r, 4);
            const auto value = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 16
            for (int p = 0; p < P; ++p) {
                sums[r][p].part[0] = (Part)_mm512_dpbf16_ps((__m512)sums[r][p].part[0], w[p], value);
            }
        }
#endif
    } else if constexpr (KIND == BF16) {
        for (int p = 0; p < P; ++p) {
            const LanePairs w = load_pairs(reinterpret_cast<const uint32_t *>(panels + p * panel_bytes));
            for (int r = 0; r < R; ++r) {
                sums[r][p] = fused(w.first, splat(x[r]), sums[r][p]);
                sums[r][p] = fused(w.second, splat(x[R + r]), sums[r][p]);
            }
        }
    } else {
        Lanes w[P];
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p) {
            const char *from = panels + p * panel_bytes;
            if constexpr (KIND == I8) {
                w[p] = load_bytes(reinterpret_cast<const int8_t *>(from));
            } else {
                w[p] = load(reinterpret_cast<const float *>(from));
            }
        }
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            const Lanes value = splat(x[r]);
#pragma GCC unroll 16
            for (int p = 0; p < P; ++p) sums[r][p] = fused(w[p], value, sums[r][p]);
        }
    }
}

// R rows times P panels that lie one behind the other.
template <int KIND, int R, int P>
void tile(const char *panels, int64_t steps, const float *x, const Target &target) {
    constexpr int64_t BYTES = step_bytes(KIND);
    const int64_t panel_bytes = steps * BYTES;
    Lanes sums[R][P];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p) sums[r][p] = zeros();
    }
    constexpr int64_t LINE_STEPS = 64 / BYTES;
    const auto run = [&](int64_t from, int64_t to, int64_t ahead) {
        for (int64_t step = from; step < to; step += LINE_STEPS) {
            const char *here = panels + step * BYTES;
            if constexpr (P >= 2) {
#pragma GCC unroll 16
                for (int p = 0; p < P; ++p) __builtin_prefetch(here + p * panel_bytes + ahead);
            }
            const int64_t end = LINE_STEPS == 1 ? 1 : to - step < LINE_STEPS ? to - step : LINE_STEPS;
#pragma GCC unroll 4
            for (int64_t inner = 0; inner < end; ++inner) {
                one_step<KIND, R, P>(sums, here + inner * BYTES, panel_bytes, x + (step + inner) * R * x_per_step(KIND));
            }
        }
    };
    // Towards the end of its panels a tile fetches the beginning of those that follow them.
    const int64_t near_end = steps > FETCH_AHEAD_BYTES / BYTES ? (steps - FETCH_AHEAD_BYTES / BYTES) / LINE_STEPS * LINE_STEPS : 0;
    run(0, near_end, FETCH_AHEAD_BYTES);
    run(near_end, steps, FETCH_AHEAD_BYTES + (P - 1) * panel_bytes);
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

}  // namespace experts
