// SPDX-License-Identifier: Apache-2.0
// How tasks are handed out without locks, and how idle threads go to sleep.

#include "pool.hpp"

#include <chrono>

namespace experts {
namespace {

constexpr uint64_t TASK_MASK = 0xFFFFFFFFu;

uint32_t region_of(uint64_t ticket) { return static_cast<uint32_t>(ticket >> 32); }

void pause() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Waits for a condition that another thread will make true soon; false when it did not within the time.
template <class Condition>
bool spin(int spin_us, const Condition &holds) {
    if (spin_us <= 0) return holds();
    const auto end = std::chrono::steady_clock::now() + std::chrono::microseconds(spin_us);
    do {
        for (int round = 0; round < 16; ++round) {
            if (holds()) return true;
            pause();
        }
    } while (std::chrono::steady_clock::now() < end);
    return holds();
}

}  // namespace

Pool::Pool(int threads, int spin_us) : spin_us_(spin_us) {
    for (int worker = 1; worker < threads; ++worker) workers_.emplace_back([this, worker] { work(worker); });
}

Pool::~Pool() {
    {
        std::lock_guard<std::mutex> lock(mutex_);
        stop_ = true;
    }
    wake_workers_.notify_all();
    for (auto &worker : workers_) worker.join();
}

void Pool::run_erased(int64_t n, Call call, const void *context) {
    // A late worker of the last region may be reading: close the ticket before the parameters change.
    const uint32_t closed = region_of(ticket_.load(std::memory_order_relaxed)) + 1;
    ticket_.store(static_cast<uint64_t>(closed) << 32, std::memory_order_seq_cst);
    std::atomic_thread_fence(std::memory_order_release);
    done_.store(0, std::memory_order_relaxed);
    tasks_.store(n, std::memory_order_relaxed);
    call_.store(call, std::memory_order_relaxed);
    context_.store(context, std::memory_order_relaxed);
    const uint32_t region = closed + 1;
    ticket_.store(static_cast<uint64_t>(region) << 32, std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst) > 0) {
        // Taken and let go: a worker between its last look and its sleep holds the lock.
        { std::lock_guard<std::mutex> lock(mutex_); }
        wake_workers_.notify_all();
    }
    take_tasks(region, 0);
    const auto finished = [this, n] { return done_.load(std::memory_order_acquire) == n; };
    if (spin(spin_us_, finished)) return;
    std::unique_lock<std::mutex> lock(mutex_);
    caller_sleeps_.store(true, std::memory_order_seq_cst);
    while (done_.load(std::memory_order_seq_cst) != n) wake_caller_.wait(lock);
    caller_sleeps_.store(false, std::memory_order_seq_cst);
}

void Pool::take_tasks(uint32_t region, int worker) {
    uint64_t ticket = ticket_.load(std::memory_order_acquire);
    while (region_of(ticket) == region) {
        const int64_t n = tasks_.load(std::memory_order_relaxed);
        const Call call = call_.load(std::memory_order_relaxed);
        const void *context = context_.load(std::memory_order_relaxed);
        const auto index = static_cast<int64_t>(ticket & TASK_MASK);
        if (index >= n) return;
        // Parameters read from a later region imply a later ticket, on which the exchange fails.
        std::atomic_thread_fence(std::memory_order_acquire);
        if (!ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel, std::memory_order_acquire)) {
            continue;
        }
        call(context, index, worker);
        if (done_.fetch_add(1, std::memory_order_seq_cst) + 1 == n && caller_sleeps_.load(std::memory_order_seq_cst)) {
            { std::lock_guard<std::mutex> lock(mutex_); }
            wake_caller_.notify_one();
        }
        ticket = ticket_.load(std::memory_order_acquire);
    }
}

void Pool::work(int worker) {
    uint32_t seen = 0;
    while (wait_for_region(seen)) {
        const uint32_t region = region_of(ticket_.load(std::memory_order_acquire));
        if (region % 2 == 1) continue;
        take_tasks(region, worker);
        seen = region;
    }
}

bool Pool::wait_for_region(uint32_t seen) {
    const auto ready = [this, seen] {
        const uint32_t region = region_of(ticket_.load(std::memory_order_seq_cst));
        return (region != seen && region % 2 == 0) || stop_.load(std::memory_order_relaxed);
    };
    if (!spin(spin_us_, ready)) {
        std::unique_lock<std::mutex> lock(mutex_);
        sleepers_.fetch_add(1, std::memory_order_seq_cst);
        while (!ready()) wake_workers_.wait(lock);
        sleepers_.fetch_sub(1, std::memory_order_seq_cst);
    }
    return !stop_.load(std::memory_order_relaxed);
}

}  // namespace experts
