// SPDX-License-Identifier: Apache-2.0
// One step of the decoder: all layers of all rows of a batch, in one call.
//
// The step reads what its caller hands over and writes states, logits and shares. It holds room for what lies between
// layers, taken once and grown; it keeps nothing of one step for the next one.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "attention.hpp"
#include "likeliest.hpp"
#include "model.hpp"
#include "pool.hpp"
#include "router.hpp"

namespace experts {

// Memory that only grows, aligned for vectors; its content is lost when it grows.
template <class Number>
class Room {
   public:
    Room() = default;
    ~Room() { std::free(data_); }
    Room(const Room &) = delete;
    Room &operator=(const Room &) = delete;

    Number *need(int64_t n) {
        if (n > size_) {
            std::free(data_);
            size_ = 0;
            const size_t bytes = (static_cast<size_t>(n) * sizeof(Number) + 63) / 64 * 64;
            data_ = static_cast<Number *>(std::aligned_alloc(64, bytes));
            if (data_ == nullptr) std::abort();
            size_ = n;
        }
        return data_;
    }
    Number *data() const { return data_; }
    int64_t size_bytes() const { return size_ * static_cast<int64_t>(sizeof(Number)); }

   private:
    Number *data_ = nullptr;
    int64_t size_ = 0;
};

// A matrix that was multiplied, and by how many rows.
struct Record {
    uint64_t address;
    int64_t rows;
};

class Step {
   public:
    explicit Step(int threads);

    // Takes over tables of layers and columns; the weights themselves stay where they are.
    void set_model(const Model &model);
    // False, and nothing done, where the batch names what there is none of.
    bool run(const States &states, const Batch &batch);

    int64_t size_bytes() const;
    void record(bool on) { recording_ = on; }
    const std::vector<Record> &recorded() const { return recorded_; }

   private:
    // A row of the batch: whose it is, and which position.
    struct Row {
        int32_t piece, position;
    };
    // The rows that one column computes in a layer: their slots, and where they find room.
    struct Work {
        int32_t column;
        int64_t begin, rows, hidden_at, hidden_up_at, inner_at;
        const float *x;
        const int32_t *x_rows;
    };
    // Queries of one piece and key head that share passes over pages.
    struct Group {
        int32_t piece, first_row, n_rows, kv_head;
    };

    bool sound(const States &states, const Batch &batch) const;
    void prepare(const Batch &batch);
    void group_rows();
    void take_room();
    void embed(const Batch &batch);
    void project(const States &states, const Batch &batch, int64_t layer);
    void attend_groups(const States &states, const Batch &batch, int64_t layer);
    void after_attention(const Layer &layer);
    void sum_prefixes(const States &states, const Batch &batch, int64_t layer);
    void keep_last_rows();
    void finish(const Batch &batch);
    void choose(const Batch &batch);
    static void read_row(const Matrix &matrix, int64_t output, float *to);
    const float *mixture_input() const;

    void mixture(const Batch &batch, int64_t layer);
    void route_rows(const Batch &batch, const Column *columns);
    void share(const Batch &batch);
    void assign(const Column *columns);
    void compute(const Batch &batch, const Column *columns);
    void change_inner(const Column *columns);
    void change_outer(const Column *columns);
    void add_outputs(const Layer &layer);

    void issue();

    // Calls task(row, worker) for all rows; few rows are not worth waking anybody.
    template <class Task>
    void over_rows(int64_t n, const Task &task) {
        const int64_t grain = std::max<int64_t>(1, 4096 / model_.shape.d_model);
        pool_.run((n + grain - 1) / grain, [&](int64_t index, int worker) {
            const int64_t end = std::min(n, (index + 1) * grain);
            for (int64_t row = index * grain; row < end; ++row) task(row, worker);
        });
    }

    Pool pool_;
    Model model_ = {};
    PageLayout layout_ = {};
    std::vector<Layer> layers_;
    std::vector<Column> columns_;

    std::vector<Row> rows_;
    std::vector<int32_t> last_rows_, first_rows_;
    std::vector<uint8_t> gated_;  // per piece
    bool any_gated_ = false, compacted_ = false;
    int64_t n_rows_ = 0, top_k_ = 0;
    std::vector<Group> groups_;

    Room<float> x_, normed_, qkv_, attended_, added_, hidden_, hidden_up_, outputs_, inner_gate_, inner_up_;
    Room<double> sums_;
    std::vector<std::vector<float>> scores_;
    std::vector<RoutingRoom> routing_;
    std::vector<int32_t> chosen_, n_chosen_, slots_, filled_;
    std::vector<float> weights_;
    std::vector<int32_t> slot_rows_;
    std::vector<Work> work_;
    std::vector<Product> products_;
    std::vector<LogitBlock> blocks_;
    std::vector<int32_t> order_;
    bool recording_ = false;
    std::vector<Record> recorded_;
};

}  // namespace experts
