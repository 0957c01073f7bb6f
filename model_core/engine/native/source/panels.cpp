// SPDX-License-Identifier: Apache-2.0
// Products of panels and rows.

#include "panels.hpp"

#include <cmath>
#include <cstring>
#include <vector>

namespace experts {
namespace {

float round_bf16(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    if (std::isnan(x)) return x;
    bits = (bits + 0x7FFFu + ((bits >> 16) & 1u)) & 0xFFFF0000u;
    std::memcpy(&x, &bits, 4);
    return x;
}

float weight(const Matrix &matrix, int64_t panel, int64_t input, int64_t lane) {
    if (matrix.kind == F32) {
        return static_cast<const float *>(matrix.data)[(panel * matrix.n_in + input) * LANES + lane];
    }
    if (matrix.kind == I8) {
        return static_cast<const int8_t *>(matrix.data)[(panel * matrix.n_in + input) * LANES + lane];
    }
    const int64_t pairs = (matrix.n_in + 1) / 2;
    const uint16_t half =
        static_cast<const uint16_t *>(matrix.data)[((panel * pairs + input / 2) * LANES + lane) * 2 + input % 2];
    const uint32_t bits = static_cast<uint32_t>(half) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

}  // namespace

float exp_one(float x) { return std::exp(x); }

void multiply(const Matrix &matrix, int64_t first, int64_t last, const float *x, int64_t x_stride, int64_t rows, float *y,
              int64_t y_stride, bool add) {
    for (int64_t row = 0; row < rows; ++row) {
        for (int64_t panel = first; panel < last; ++panel) {
            float sums[LANES] = {};
            for (int64_t input = 0; input < matrix.n_in; ++input) {
                float value = x[row * x_stride + input];
                if (matrix.kind == BF16) value = round_bf16(value);
                for (int64_t lane = 0; lane < LANES; ++lane) {
                    sums[lane] = std::fma(value, weight(matrix, panel, input, lane), sums[lane]);
                }
            }
            for (int64_t lane = 0; lane < LANES && panel * LANES + lane < matrix.n_out; ++lane) {
                const int64_t output = panel * LANES + lane;
                float &out = y[row * y_stride + output];
                const float sum = matrix.kind == I8 ? sums[lane] * matrix.scales[output] : sums[lane];
                out = add ? out + sum : sum;
            }
        }
    }
}

void multiply_many(Pool &pool, const Product *products, int64_t n_products) {
    pool.run(n_products, [&](int64_t index, int) {
        const Product &one = products[index];
        multiply(one.matrix, 0, panels_of(one.matrix), one.x, one.x_stride, one.rows, one.y, one.y_stride,
                 one.add && one.up.data == nullptr);
        if (one.up.data == nullptr) return;
        std::vector<float> up(static_cast<size_t>(one.rows * one.matrix.n_out));
        multiply(one.up, 0, panels_of(one.up), one.x, one.x_stride, one.rows, up.data(), one.matrix.n_out);
        for (int64_t row = 0; row < one.rows; ++row) {
            for (int64_t output = 0; output < one.matrix.n_out; ++output) {
                float &out = one.y[row * one.y_stride + output];
                out = out / (1.0f + exp_one(-out)) * up[static_cast<size_t>(row * one.matrix.n_out + output)];
            }
        }
    });
}

void multiply_all(Pool &pool, const Matrix &matrix, const float *x, int64_t x_stride, int64_t rows, float *y,
                  int64_t y_stride, bool add) {
    const Product one{matrix, x, x_stride, rows, y, y_stride, add, {}};
    multiply_many(pool, &one, 1);
}

}  // namespace experts
