// SPDX-License-Identifier: Apache-2.0
// Pools and products for callers that speak C; the decoder's step has entries of its own.

#include <algorithm>

#include "likeliest.hpp"
#include "panels.hpp"
#include "pool.hpp"
#include "shapes.hpp"

using experts::Matrix;
using experts::Pool;

// All else stays hidden, so that two builds in one process share nothing.
#pragma GCC visibility push(default)
extern "C" {

void *experts_pool_new(int32_t threads, int32_t spin_us) { return new Pool(threads, spin_us); }

void experts_pool_free(void *pool) { delete static_cast<Pool *>(pool); }

void experts_multiply(void *pool, const Matrix *matrix, const float *x, int64_t x_stride, int64_t rows, float *y,
                      int64_t y_stride, int32_t add) {
    multiply_all(*static_cast<Pool *>(pool), *matrix, x, x_stride, rows, y, y_stride, add != 0);
}

void experts_multiply_gated(void *pool, const Matrix *gate, const Matrix *up, const float *x, int64_t x_stride, int64_t rows,
                            float *y, int64_t y_stride) {
    const experts::Product one{*gate, x, x_stride, rows, y, y_stride, false, *up, nullptr};
    multiply_many(*static_cast<Pool *>(pool), &one, 1);
}

void experts_multiply_panels(const Matrix *matrix, int64_t first, int64_t last, const float *x, int64_t x_stride,
                             int64_t rows, float *y, int64_t y_stride, int32_t add) {
    multiply(*matrix, first, last, x, x_stride, rows, y, y_stride, add != 0);
}

// Counts every task of a region where it runs: counts[task] += 1.
void experts_pool_count(void *pool, int64_t n, int64_t *counts) {
    static_cast<Pool *>(pool)->run(n, [counts](int64_t task, int) { counts[task] += 1; });
}

// Whether weights of a kind are multiplied sooner with short exponents.
int32_t experts_short_pays(int32_t kind) { return experts::short_in_registers(kind); }

void experts_exp(const float *x, float *y, int64_t n) {
    for (int64_t index = 0; index < n; ++index) y[index] = experts::exp_one(x[index]);
}

// What a step tells of one row of logits.
void experts_likeliest(const float *logits, int64_t n, int32_t *token, double *log_total) {
    std::vector<experts::LogitBlock> blocks;
    for (int64_t from = 0; from < n; from += experts::LOGITS_IN_BLOCK) {
        blocks.push_back(experts::look_at(logits + from, std::min(experts::LOGITS_IN_BLOCK, n - from)));
    }
    const experts::Likeliest found = experts::likeliest(logits, blocks.data(), experts::logit_blocks(n));
    *token = found.token;
    *log_total = found.log_total;
}

// What a step tells of one row of shares.
void experts_shares_ppm(const double *shares, int64_t n, int32_t *ppm) {
    std::vector<int32_t> order;
    experts::to_ppm(shares, n, ppm, order);
}
}
