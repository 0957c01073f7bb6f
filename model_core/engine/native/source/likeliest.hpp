// SPDX-License-Identifier: Apache-2.0
// What most draws need of a row of logits, and shares as whole parts per million.
//
// Logits are looked at in blocks of one size, whose results are put together in their order: nothing depends on who
// looked at which block, nor on other rows.
#pragma once

#include <cstdint>
#include <vector>

namespace experts {

constexpr int64_t LOGITS_IN_BLOCK = 1024;

// Of some logits: the largest, the sum of exp(logit - largest), and whether all of them are finite.
struct LogitBlock {
    float largest, total;
    bool finite;
};

inline int64_t logit_blocks(int64_t n) { return (n + LOGITS_IN_BLOCK - 1) / LOGITS_IN_BLOCK; }

LogitBlock look_at(const float *logits, int64_t n);

// The first of a row's largest logits and the logarithm of the sum of exp(logit - largest); -1 and 0 where one of the
// logits is not finite.
struct Likeliest {
    int32_t token;
    double log_total;
};

Likeliest likeliest(const float *logits, const LogitBlock *blocks, int64_t n_blocks);

// Rounds non-negative shares to whole numbers that add up to 1,000,000, by largest remainder, ties to the earlier one.
void to_ppm(const double *shares, int64_t n, int32_t *ppm, std::vector<int32_t> &order);

}  // namespace experts
