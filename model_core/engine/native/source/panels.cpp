// SPDX-License-Identifier: Apache-2.0
// Products of panels and rows: rows are packed into tiles, and tiles run over panels that stay in the cache.

#include "panels.hpp"

#include <algorithm>
#include <atomic>
#include <vector>

#include "rows.hpp"

namespace experts {
namespace {

// Packed rows of one pass stay in a core's second cache together with the panels of a tile. Short exponents are looked
// up again for every pass, which costs more than rows that come from the third.
constexpr int64_t PASS_BYTES = 384 << 10, SHORT_PASS_BYTES = 3 << 20;

const TileRow &tiles_of(int kind, int rows) {
    return kind == BF16 ? bf16_tiles(rows) : kind == I8 ? i8_tiles(rows) : f32_tiles(rows);
}

const char *panel_at(const Matrix &matrix, int64_t panel) {
    if (is_short(matrix)) return static_cast<const char *>(matrix.data) + panel / BAND * short_band_bytes(matrix);
    const int64_t bytes = step_bytes(matrix.kind), within = panel % BAND;
    return static_cast<const char *>(matrix.data) + ((panel - within) * steps_of(matrix) + within) * bytes;
}

ShortPart short_part(const Matrix &matrix, int64_t panel, char *keep) {
    const uint8_t *others = matrix.others, *end = others + matrix.others_at[panels_of(matrix) / 2];
    const int64_t *at = matrix.others_at + panel / BAND * 2;
    return {panel_at(matrix, panel), panel % BAND, matrix.exponents, {others + at[0], others + at[1]}, end, keep};
}

// Panels that a tile takes at once, as a power of two: as many as it may, as are left, and as stand in one piece.
int panels_at_once(int most, int64_t panel, int64_t last) {
    int log = 2;
    while (log > 0 && ((1 << log) > std::min<int64_t>(most, last - panel) || panel % (1 << log) != 0)) --log;
    return log;
}

// Of several tiles of rows the first one leaves whole weights to all others.
void multiply_short(const Matrix &matrix, int64_t first, int64_t last, const PackedRows &x, float *y, int64_t y_stride,
                    bool add, const char *next) {
    static thread_local Scratch whole;
    const bool keep = x.cut.tiles > 1;
    const int rows = x.cut.size(0);
    const int64_t pairs = matrix.n_in / 2;
    const ShortTileRow &tiles = matrix.kind == BF16 ? bf16_short_tiles(rows, keep) : f32_short_tiles(rows, keep);
    for (int64_t panel = first; panel < last;) {
        const int log = panels_at_once(most_short_panels(rows, keep), panel, last);
        const int64_t end = panel + (int64_t{1} << log), width = matrix.n_out - panel * LANES;
        const char *then = end == last && next != nullptr ? next : panel_at(matrix, end);
        Target target{y + panel * LANES, y_stride, width, nullptr, add, step_bytes(matrix.kind) << log, then};
        float *kept = keep ? whole.floats(pairs * (whole_bytes(matrix.kind) << log) / 4) : nullptr;
        const ShortPart part = short_part(matrix, panel, reinterpret_cast<char *>(kept));
        tiles.by_panels[log](part, pairs, x.tile(0), target);
        for (int64_t tile = 1; tile < x.cut.tiles; ++tile) {
            target.y = y + x.cut.begin(tile) * y_stride + panel * LANES;
            tiles_of(matrix.kind, x.cut.size(tile)).by_panels[log](part.keep, steps_of(matrix), x.tile(tile), target);
        }
        panel = end;
    }
}

// next: panels that the caller reads afterwards; null where it does not know.
void multiply_packed(const Matrix &matrix, int64_t first, int64_t last, const PackedRows &x, float *y, int64_t y_stride,
                     bool add, const char *next = nullptr) {
    if (is_short(matrix)) return multiply_short(matrix, first, last, x, y, y_stride, add, next);
    const int64_t steps = steps_of(matrix);
    int64_t panel = first;
    while (panel < last) {
        const int log = panels_at_once(most_panels(x.cut.largest()), panel, last);
        const int64_t end = panel + (int64_t{1} << log);
        const char *from = panel_at(matrix, panel);
        const int64_t step = band_of(matrix, panel) * step_bytes(matrix.kind);
        Target target{nullptr, y_stride, matrix.n_out - panel * LANES, nullptr, add, step, panel_at(matrix, end)};
        if (end == last && next != nullptr) target.next = next;
        if (matrix.kind == I8) target.scales = matrix.scales + panel * LANES;
        for (int64_t tile = 0; tile < x.cut.tiles; ++tile) {
            target.y = y + x.cut.begin(tile) * y_stride + panel * LANES;
            tiles_of(matrix.kind, x.cut.size(tile)).by_panels[log](from, steps, x.tile(tile), target);
        }
        panel = end;
    }
}

// Calls use(packed rows, first row) for passes over all rows.
template <class Use>
void each_pass(const Matrix &matrix, const RowSource &x, int64_t rows, uint64_t region, const Use &use) {
    const int64_t row_bytes = steps_of(matrix) * x_per_step(matrix.kind) * 4;
    const int64_t pass_bytes = is_short(matrix) ? SHORT_PASS_BYTES : PASS_BYTES;
    const int64_t in_pass = std::max<int64_t>(MAX_ROWS, pass_bytes / row_bytes / MAX_ROWS * MAX_ROWS);
    for (int64_t row = 0; row < rows; row += in_pass) {
        use(pack_rows(matrix.kind, x.from(row), matrix.n_in, std::min(in_pass, rows - row), region), row);
    }
}

// A part of a product: some of its rows times some of its panels.
struct Share {
    const Product *product;
    int64_t first, last, row, rows;
    uint64_t region;
};

// y = silu(W x) * (up x) for a part: outputs of the second matrix stand beside those of the first only until they are
// used, a few panels at a time.
void multiply_gated(const Product &one, int64_t first, int64_t last, const PackedRows &x, float *y) {
    constexpr int64_t AT_ONCE = 8;
    static thread_local std::vector<float> beside;
    beside.resize(static_cast<size_t>(x.cut.rows * AT_ONCE * LANES));
    for (int64_t panel = first; panel < last; panel += AT_ONCE) {
        const int64_t end = std::min(panel + AT_ONCE, last), begin = panel * LANES;
        multiply_packed(one.matrix, panel, end, x, y, one.y_stride, false, panel_at(one.up, panel));
        multiply_packed(one.up, panel, end, x, beside.data() - begin, AT_ONCE * LANES, false, panel_at(one.matrix, end));
        for (int64_t row = 0; row < x.cut.rows; ++row) {
            const float *up = beside.data() + row * AT_ONCE * LANES;
            for (int64_t column = begin; column < std::min(end * LANES, one.matrix.n_out); column += LANES) {
                float *gate = y + row * one.y_stride + column;
                const int64_t width = one.matrix.n_out - column;
                store_first(gate, gated(load_first(gate, width), load_first(up + column - begin, width)), width);
            }
        }
    }
}

void compute(const Share &share) {
    const Product &one = *share.product;
    const RowSource x = RowSource{one.x, one.x_stride, one.x_rows}.from(share.row);
    each_pass(one.matrix, x, share.rows, share.region, [&](const PackedRows &packed, int64_t row) {
        float *y = one.y + (share.row + row) * one.y_stride;
        if (one.up.data != nullptr) return multiply_gated(one, share.first, share.last, packed, y);
        multiply_packed(one.matrix, share.first, share.last, packed, y, one.y_stride, one.add);
    });
}

// What a product costs, in units in which one panel of one input costs about 1 to read and 1 / 8 per row to compute.
double cost_of(const Product &one) {
    const double size = static_cast<double>(panels_of(one.matrix) * one.matrix.n_in) * (one.up.data != nullptr ? 2 : 1);
    const double whole = one.matrix.kind == F32 ? 1.0 : one.matrix.kind == BF16 ? 0.5 : 0.4;
    const double bytes = is_short(one.matrix) ? whole - 0.12 : whole;
    return one.rows == 0 ? 0.0 : size * std::max(bytes, static_cast<double>(one.rows) / 8);
}

constexpr double LEAST_COST = 2048;  // some microseconds
constexpr int64_t SHARES_PER_THREAD = 6;
constexpr int64_t LEAST_ROWS = 8 * MAX_ROWS;  // fewer would pack rows for too few products

void cut(const Product &one, int64_t pieces, uint64_t region, std::vector<Share> &shares) {
    const int64_t panels = panels_of(one.matrix);
    const int64_t by_rows = std::clamp<int64_t>(one.rows / LEAST_ROWS, 1, pieces);
    // Panels are handed out in groups that a tile takes at once.
    const int64_t group = is_short(one.matrix) ? BAND : most_panels(Cut(one.rows / by_rows).largest());
    const int64_t groups = (panels + group - 1) / group;
    const int64_t by_panels = std::clamp<int64_t>((pieces + by_rows - 1) / by_rows, 1, groups);
    for (int64_t part = 0; part < by_panels; ++part) {
        const int64_t first = part * groups / by_panels * group;
        const int64_t last = std::min(panels, (part + 1) * groups / by_panels * group);
        for (int64_t rows = 0; rows < by_rows; ++rows) {
            const int64_t row = rows * one.rows / by_rows, end = (rows + 1) * one.rows / by_rows;
            shares.push_back({&one, first, last, row, end - row, region});
        }
    }
}

}  // namespace

float exp_one(float x) { return exp_lanes(splat(x)).part[0][0]; }

void multiply(const Matrix &matrix, int64_t first, int64_t last, const float *x, int64_t x_stride, int64_t rows, float *y,
              int64_t y_stride, bool add) {
    each_pass(matrix, RowSource{x, x_stride, nullptr}, rows, 0, [&](const PackedRows &packed, int64_t row) {
        multiply_packed(matrix, first, last, packed, y + row * y_stride, y_stride, add);
    });
}

void multiply_many(Pool &pool, const Product *products, int64_t n_products) {
    static thread_local std::vector<Share> shares;
    static std::atomic<uint64_t> regions{0};
    const uint64_t region = regions.fetch_add(1, std::memory_order_relaxed) + 1;
    shares.clear();
    double total = 0;
    for (int64_t index = 0; index < n_products; ++index) total += cost_of(products[index]);
    const double target = std::max(LEAST_COST, total / static_cast<double>(pool.threads() * SHARES_PER_THREAD));
    for (int64_t index = 0; index < n_products; ++index) {
        if (products[index].rows == 0) continue;
        const double pieces = pool.threads() == 1 ? 1 : cost_of(products[index]) / target;
        cut(products[index], std::max<int64_t>(1, static_cast<int64_t>(pieces + 0.5)), region, shares);
    }
    const Share *first = shares.data();
    pool.run(static_cast<int64_t>(shares.size()), [first](int64_t index, int) { compute(first[index]); });
}

void multiply_all(Pool &pool, const Matrix &matrix, const float *x, int64_t x_stride, int64_t rows, float *y,
                  int64_t y_stride, bool add) {
    const Product one{matrix, x, x_stride, rows, y, y_stride, add, {}, nullptr};
    multiply_many(pool, &one, 1);
}

}  // namespace experts
