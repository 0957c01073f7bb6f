// SPDX-License-Identifier: Apache-2.0
// Rows brought into the order in which tiles read them.
//
// A row is treated alike in every tile: what is rounded (bf16) depends on its own number alone.
#pragma once

#include <algorithm>
#include <memory>

#include "shapes.hpp"

namespace experts {

// Rows somewhere in memory, in order or by index.
struct RowSource {
    const float *x;
    int64_t stride;
    const int32_t *rows;  // null: 0, 1, 2, ...

    const float *row(int64_t index) const { return x + (rows == nullptr ? index : rows[index]) * stride; }
    RowSource from(int64_t first) const {
        return rows == nullptr ? RowSource{x + first * stride, stride, nullptr} : RowSource{x, stride, rows + first};
    }
};

inline float rounded_bf16(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    if (x != x) return x;
    bits = (bits + 0x7FFFu + ((bits >> 16) & 1u)) & 0xFFFF0000u;
    std::memcpy(&x, &bits, 4);
    return x;
}

// Memory of one thread that grows and is kept.
class Scratch {
   public:
    float *floats(int64_t n) {
        if (n > size_) {
            memory_.reset(new float[static_cast<size_t>(n) + 64]);
            size_ = n;
        }
        const auto address = reinterpret_cast<uintptr_t>(memory_.get());
        return reinterpret_cast<float *>((address + 63) & ~uintptr_t{63});
    }

   private:
    std::unique_ptr<float[]> memory_;
    int64_t size_ = 0;
};

#if defined(__AVX512F__)
inline void transpose(__m512i (&m)[16]) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(m[i], m[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(m[i], m[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        m[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        m[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        m[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        m[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 16; i += 8) {
        for (int j = 0; j < 4; ++j) {
            t[i + j] = _mm512_shuffle_i32x4(m[i + j], m[i + j + 4], 0x88);
            t[i + j + 4] = _mm512_shuffle_i32x4(m[i + j], m[i + j + 4], 0xdd);
        }
    }
    for (int i = 0; i < 8; ++i) {
        m[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        m[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    }
}

// Sixteen steps of one row: floats as they are, or pairs of bf16. Steps behind n_in are zeros.
template <bool PAIRS>
inline __m512i sixteen_steps(const float *row, int64_t step, int64_t n_in) {
    const auto part = [&](int64_t at) { return (__m512)load_first(row + at, std::max<int64_t>(0, n_in - at)).part[0]; };
    if constexpr (PAIRS) {
#if defined(__AVX512BF16__)
        return (__m512i)_mm512_cvtne2ps_pbh(part(2 * step + 16), part(2 * step));
#endif
    }
    return _mm512_castps_si512(part(step));
}

template <bool PAIRS>
void pack_tile(const RowSource &x, int64_t n_in, int64_t steps, int rows, float *packed) {
    for (int64_t step = 0; step < steps; step += 16) {
        if (rows == 1) {
            const auto mask = static_cast<__mmask16>((1u << std::min<int64_t>(16, steps - step)) - 1u);
            _mm512_mask_storeu_epi32(packed + step, mask, sixteen_steps<PAIRS>(x.row(0), step, n_in));
            continue;
        }
        __m512i block[16];
        for (int row = 0; row < rows; ++row) block[row] = sixteen_steps<PAIRS>(x.row(row), step, n_in);
        for (int row = rows; row < 16; ++row) block[row] = _mm512_setzero_si512();
        transpose(block);
        const auto mask = static_cast<__mmask16>((1u << rows) - 1u);
        for (int64_t s = 0; s < std::min<int64_t>(16, steps - step); ++s) {
            _mm512_mask_storeu_epi32(packed + (step + s) * rows, mask, block[s]);
        }
    }
}
#endif

// How rows are cut into tiles that differ by at most one row.
struct Cut {
    int64_t rows, tiles;

    explicit Cut(int64_t n) : rows(n), tiles((n + MAX_ROWS - 1) / MAX_ROWS) {}
    int64_t begin(int64_t tile) const { return tile * rows / tiles; }
    int size(int64_t tile) const { return static_cast<int>(begin(tile + 1) - begin(tile)); }
    int largest() const { return static_cast<int>((rows + tiles - 1) / tiles); }
};

// Tiles of rows, one behind the other.
struct PackedRows {
    const float *x;
    Cut cut;
    int64_t row_floats;

    const float *tile(int64_t index) const { return x + cut.begin(index) * row_floats; }
};

// What a thread packed last. Within a region rows do not change, so equal ones need not be packed again.
struct LastPacked {
    uint64_t region = 0;
    bool pairs = false;
    RowSource x = {};
    int64_t n_in = 0, n_rows = 0;

    bool operator==(const LastPacked &other) const {
        return region == other.region && pairs == other.pairs && x.x == other.x.x && x.stride == other.x.stride &&
               x.rows == other.x.rows && n_in == other.n_in && n_rows == other.n_rows;
    }
};

// Packs rows for products with a kind of matrix. The result is this thread's until its next call.
// region: a number that no other region of products has; 0 where rows may change before the next call.
inline PackedRows pack_rows(int kind, const RowSource &x, int64_t n_in, int64_t n_rows, uint64_t region) {
    static thread_local Scratch scratch;
    static thread_local LastPacked last;
    const bool pairs = kind == BF16;
    const int64_t steps = pairs ? (n_in + 1) / 2 : n_in;
    PackedRows out{nullptr, Cut(n_rows), steps * x_per_step(kind)};
    if (!pairs && n_rows == 1) {
        out.x = x.row(0);
        return out;
    }
    float *packed = scratch.floats(n_rows * out.row_floats);
    out.x = packed;
    const LastPacked now{region, pairs, x, n_in, n_rows};
    if (region != 0 && now == last) return out;
    last = now;
    for (int64_t tile = 0; tile < out.cut.tiles; ++tile) {
        const RowSource rows = x.from(out.cut.begin(tile));
        const int n = out.cut.size(tile);
        float *to = packed + out.cut.begin(tile) * out.row_floats;
#if defined(__AVX512F__)
        if (!pairs || PAIRS_AT_ONCE) {
            pairs ? pack_tile<true>(rows, n_in, steps, n, to) : pack_tile<false>(rows, n_in, steps, n, to);
            continue;
        }
#endif
        for (int row = 0; row < n; ++row) {
            const float *from = rows.row(row);
            for (int64_t input = 0; input < out.row_floats; ++input) {
                const float value = input < n_in ? from[input] : 0.0f;
                to[input * n + row] = pairs ? rounded_bf16(value) : value;
            }
        }
    }
    return out;
}

}  // namespace experts
