// A few threads that share the tasks of one phase after the other. Nobody waits for a thread that sleeps: who is awake takes the next task,
// and a phase ends when its last task does. So a core that another program takes costs its share, not everything.
#pragma once
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
static inline void relax() { _mm_pause(); }
#else
static inline void relax() {}
#endif

// Who waits spins for some ten microseconds, then lets others have the core, then sleeps.
constexpr int SPINS = 500, YIELDS = 100;

class Pool {
  public:
    explicit Pool(int threads) : threads_(threads < 1 ? 1 : threads) {
        for (int i = 1; i < threads_; i++) workers_.emplace_back([this, i] { work(i); });
    }
    ~Pool() {
        {
            std::lock_guard<std::mutex> held(mutex_);
            over_ = true;
        }
        wake_.notify_all();
        for (auto& worker : workers_) worker.join();
    }

    int threads() const { return threads_; }

    // Calls task(number, thread) for numbers 0..count-1, spread over the threads; returns when all are done.
    template <class Task> void run(int count, const Task& task) {
        if (count <= 0) return;
        if (threads_ == 1 || count == 1) {
            for (int i = 0; i < count; i++) task(i, 0);
            return;
        }
        call_ = [](const void* what, int number, int thread) { (*(const Task*)what)(number, thread); };
        what_ = &task;
        done_.store(0, std::memory_order_relaxed);
        epoch_ = (epoch_ + 1) & 0xffffff;
        ticket_.store(epoch_ << 40 | (uint64_t)count << 20, std::memory_order_seq_cst);
        if (asleep_.load(std::memory_order_seq_cst)) {
            std::lock_guard<std::mutex> held(mutex_);
            wake_.notify_all();
        }
        take(0);
        for (int spins = 0; done_.load(std::memory_order_acquire) < count; spins++) {
            relax();
            if (spins > SPINS) std::this_thread::yield();
        }
    }

  private:
    // Takes tasks of the current phase until none is left. The ticket names phase, count and next number in one word, so a task that was
    // taken belongs to a phase that cannot end before it is done.
    bool take(int thread) {
        bool any = false;
        for (;;) {
            uint64_t now = ticket_.load(std::memory_order_acquire);
            int count = now >> 20 & 0xfffff, number = now & 0xfffff;
            if (number >= count) return any;
            if (!ticket_.compare_exchange_weak(now, now + 1, std::memory_order_acq_rel)) continue;
            call_(what_, number, thread);
            done_.fetch_add(1, std::memory_order_release);
            any = true;
        }
    }

    void work(int thread) {
        int idle = 0;
        while (!over_) {
            if (take(thread)) { idle = 0; continue; }
            relax();
            if (++idle < SPINS) continue;
            if (idle < SPINS + YIELDS) { std::this_thread::yield(); continue; }
            std::unique_lock<std::mutex> held(mutex_);
            asleep_.fetch_add(1, std::memory_order_seq_cst);
            wake_.wait(held, [this] {
                uint64_t now = ticket_.load(std::memory_order_seq_cst);
                return over_ || (int)(now & 0xfffff) < (int)(now >> 20 & 0xfffff);
            });
            asleep_.fetch_sub(1, std::memory_order_seq_cst);
            idle = 0;
        }
    }

    int threads_;
    std::vector<std::thread> workers_;
    std::mutex mutex_;
    std::condition_variable wake_;
    std::atomic<bool> over_{false};
    std::atomic<int> asleep_{0}, done_{0};
    alignas(64) std::atomic<uint64_t> ticket_{0};
    uint64_t epoch_ = 0;
    void (*call_)(const void*, int, int) = nullptr;
    const void* what_ = nullptr;
};
