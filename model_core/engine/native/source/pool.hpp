// SPDX-License-Identifier: Apache-2.0
// A few threads that share short regions of work, of which a decode step has several per layer.
//
// The caller takes part, and never waits for a worker that has not yet taken a task: on a machine that is busy with
// other things, or in a child of fork where no workers exist, a region ends as soon as the caller alone can end it.
// Workers watch for the next region for some microseconds and then sleep. Knows nothing of what is computed.
#pragma once

#include <atomic>
#include <cstdint>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace experts {

// One caller at a time; a task must neither throw nor call run of the same pool.
class Pool {
   public:
    // threads: how many compute, the caller counted; at least 1. spin_us: how long an idle worker watches before it
    // sleeps, and the caller before it sleeps on the last task of somebody else.
    explicit Pool(int threads, int spin_us = 50);
    ~Pool();
    Pool(const Pool &) = delete;
    Pool &operator=(const Pool &) = delete;

    int threads() const { return static_cast<int>(workers_.size()) + 1; }

    // Calls task(index, worker) once for each 0 <= index < n, in any order and by several threads; returns when all have
    // ended. worker is 0 for the caller and below threads() for the others: no two run at once under one number.
    template <class Task>
    void run(int64_t n, const Task &task) {
        if (n <= 0) return;
        if (n == 1 || workers_.empty()) {
            for (int64_t index = 0; index < n; ++index) task(index, 0);
            return;
        }
        run_erased(
            n, [](const void *context, int64_t index, int worker) { (*static_cast<const Task *>(context))(index, worker); },
            &task);
    }

   private:
    using Call = void (*)(const void *context, int64_t index, int worker);

    void run_erased(int64_t n, Call call, const void *context);
    void work(int worker);
    void take_tasks(uint32_t region, int worker);
    bool wait_for_region(uint32_t seen);

    // High half: number of the region, odd while its parameters change. Low half: the next task.
    alignas(64) std::atomic<uint64_t> ticket_{0};
    alignas(64) std::atomic<int64_t> done_{0};
    alignas(64) std::atomic<int64_t> tasks_{0};
    std::atomic<Call> call_{nullptr};
    std::atomic<const void *> context_{nullptr};
    std::atomic<int> sleepers_{0};
    std::atomic<bool> caller_sleeps_{false};
    std::atomic<bool> stop_{false};
    int spin_us_;
    std::mutex mutex_;
    std::condition_variable wake_workers_, wake_caller_;
    std::vector<std::thread> workers_;
};

}  // namespace experts
