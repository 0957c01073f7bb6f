// SPDX-License-Identifier: Apache-2.0
// One pass for the largest, one for the sum while the block is near, and a search in one block.

#include "likeliest.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "rowmath.hpp"

namespace experts {
namespace {

// The sum in the order in which numpy takes it: shares must be those of attribution.py to the last part.
double total_of(const double *x, int64_t n) {
    double total = 0.0;
    int64_t at = 0;
    if (n > 128) {
        const int64_t half = n / 16 * 8;
        return total_of(x, half) + total_of(x + half, n - half);
    }
    if (n >= 8) {
        double sums[8];
        std::copy_n(x, 8, sums);
        for (at = 8; at + 8 <= n; at += 8) {
            for (int64_t lane = 0; lane < 8; ++lane) sums[lane] += x[at + lane];
        }
        total = ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
    }
    for (; at < n; ++at) total += x[at];
    return total;
}

}  // namespace

LogitBlock look_at(const float *logits, int64_t n) {
    const int64_t whole = n / 16 * 16;
    float rest[16];
    std::fill_n(rest, 16, -std::numeric_limits<float>::infinity());
    std::copy(logits + whole, logits + n, rest);
    // Zero times what is not finite is NaN, and stays so.
    Lanes tops = load(rest), zero = load_first(logits + whole, n - whole) * zeros();
    for (int64_t at = 0; at < whole; at += 16) {
        const Lanes x = load(logits + at);
        tops = larger(x, tops);
        zero = fused(x, zeros(), zero);
    }
    const float top = largest(tops);
    const Lanes tops_all = splat(top);
    Lanes totals = zeros();
    for (int64_t at = 0; at < whole; at += 16) totals = totals + exp_lanes(load(logits + at) - tops_all);
    if (whole < n) totals = totals + exp_lanes(load(rest) - tops_all);
    return {top, sum(totals), sum(zero) == 0.0f};
}

Likeliest likeliest(const float *logits, const LogitBlock *blocks, int64_t n_blocks) {
    int64_t best = 0;
    for (int64_t block = 0; block < n_blocks; ++block) {
        if (!blocks[block].finite) return {-1, 0.0};
        if (blocks[block].largest > blocks[best].largest) best = block;
    }
    const float top = blocks[best].largest;
    double total = 0.0;
    for (int64_t block = 0; block < n_blocks; ++block) {
        const double below = static_cast<double>(blocks[block].largest) - static_cast<double>(top);
        total += static_cast<double>(blocks[block].total) * std::exp(below);
    }
    int64_t token = best * LOGITS_IN_BLOCK;
    while (logits[token] != top) ++token;
    return {static_cast<int32_t>(token), std::log(total)};
}

void to_ppm(const double *shares, int64_t n, int32_t *ppm, std::vector<int32_t> &order) {
    constexpr double WHOLE = 1e6;
    const double total = total_of(shares, n);
    order.clear();
    int64_t missing = static_cast<int64_t>(WHOLE);
    for (int32_t at = 0; at < n; ++at) {
        ppm[at] = static_cast<int32_t>(std::floor(shares[at] / total * WHOLE));
        missing -= ppm[at];
        order.push_back(at);
    }
    const auto remainder = [&](int32_t at) { return shares[at] / total * WHOLE - static_cast<double>(ppm[at]); };
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return remainder(a) > remainder(b); });
    for (int64_t at = 0; at < std::min(missing, n); ++at) ++ppm[order[static_cast<size_t>(at)]];
}

}  // namespace experts
