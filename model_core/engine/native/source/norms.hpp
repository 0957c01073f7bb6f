// SPDX-License-Identifier: Apache-2.0
// What happens to single rows between products: norms, rotation, bounds. Knows no layers.
#pragma once

#include "rowmath.hpp"

namespace experts {

// to = x / sqrt(mean(x^2) + eps) * weight. to may be x.
inline void rms_norm(const float *x, const float *weight, float eps, int64_t n, float *to) {
    const float scale = 1.0f / std::sqrt(dot(x, x, n) / static_cast<float>(n) + eps);
    int64_t at = 0;
    for (; at + 16 <= n; at += 16) store(to + at, load(x + at) * splat(scale) * load(weight + at));
    for (; at < n; ++at) to[at] = x[at] * scale * weight[at];
}

// to = a + b.
inline void add_rows(const float *a, const float *b, int64_t n, float *to) {
    int64_t at = 0;
    for (; at + 16 <= n; at += 16) store(to + at, load(a + at) + load(b + at));
    for (; at < n; ++at) to[at] = a[at] + b[at];
}

// to += weight * x.
inline void add_scaled(const float *x, float weight, int64_t n, float *to) {
    int64_t at = 0;
    for (; at + 16 <= n; at += 16) store(to + at, fused(splat(weight), load(x + at), load(to + at)));
    if (at < n) store_first(to + at, fused(splat(weight), load_first(x + at, n - at), load_first(to + at, n - at)), n - at);
}

// gate = silu(gate) * up.
inline void silu_product(float *gate, const float *up, int64_t n) {
    int64_t at = 0;
    for (; at + 16 <= n; at += 16) store(gate + at, gated(load(gate + at), load(up + at)));
    if (at < n) store_first(gate + at, gated(load_first(gate + at, n - at), load_first(up + at, n - at)), n - at);
}

// Keeps every number within [-bound, bound]; NaN stays NaN.
inline void clip_row(float *x, float bound, int64_t n) {
    for (int64_t at = 0; at < n; ++at) x[at] = x[at] > bound ? bound : (x[at] < -bound ? -bound : x[at]);
}

// Rotates the pairs (i, i + head_dim / 2) of each head by the angles of one position.
inline void rotate(float *x, const float *cosines, const float *sines, int64_t n_heads, int64_t head_dim) {
    const int64_t half = head_dim / 2;
    for (int64_t head = 0; head < n_heads; ++head, x += head_dim) {
        for (int64_t i = 0; i < half; ++i) {
            const float a = x[i], b = x[i + half];
            x[i] = a * cosines[i] - b * sines[i];
            x[i + half] = b * cosines[i + half] + a * sines[i + half];
        }
    }
}

}  // namespace experts
