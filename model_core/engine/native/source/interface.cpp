// SPDX-License-Identifier: Apache-2.0
// What other languages call: plain C functions around one step.

#include <algorithm>

#include "step.hpp"

// All else stays hidden, so that two builds in one process share nothing.
#pragma GCC visibility push(default)
extern "C" {

void *experts_step_open(int32_t threads) { return new experts::Step(std::max<int32_t>(1, threads)); }

void experts_step_close(void *step) { delete static_cast<experts::Step *>(step); }

void experts_step_model(void *step, const experts::Model *model) { static_cast<experts::Step *>(step)->set_model(*model); }

// 0, or 1 where the batch names what there is none of: then nothing was computed.
int32_t experts_step_run(void *step, const experts::States *states, const experts::Batch *batch) {
    return static_cast<experts::Step *>(step)->run(*states, *batch) ? 0 : 1;
}

int64_t experts_step_bytes(const void *step) { return static_cast<const experts::Step *>(step)->size_bytes(); }

void experts_step_record(void *step, int32_t on) { static_cast<experts::Step *>(step)->record(on != 0); }

// Copies at most room records of the last step; returns how many there are.
int64_t experts_step_recorded(const void *step, experts::Record *to, int64_t room) {
    const auto &records = static_cast<const experts::Step *>(step)->recorded();
    const auto n = static_cast<int64_t>(records.size());
    std::copy_n(records.data(), std::min(n, room), to);
    return n;
}

}  // extern "C"
