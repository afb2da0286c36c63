// A team of threads that runs one function together: tasks taken in turn, a barrier after each kind of task.
//
// Threads take tasks as they get to them, so that one that is held up by a neighbour holds up little. A thread that
// waits spins for a while and then gives its core away.
#pragma once

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <mutex>
#include <thread>

class Team {
   public:
    // Call first() and then work() on `size` threads, the caller being thread 0. One caller at a time.
    template <class First, class Work>
    static void run(int size, const First& first, const Work& work) {
        Team& team = instance();
        std::lock_guard<std::mutex> one_at_a_time(team.use_);
        first();
        size = std::min(size, MAX_SIZE);
        team.size_ = size;
        team.call_ = [](const void* what) { (*static_cast<const Work*>(what))(); };
        team.work_ = &work;
        while (team.num_workers_ < size - 1) team.hire();
        team.start_.store((team.start_.load() & ~SIZE_MASK) + SIZE_MASK + 1 + size);
        team.start_.notify_all();
        work();
        team.barrier();  // everyone has left the work
    }

    // Share tasks 0 .. count - 1 and wait until all are done; every thread of the team calls it. A thread takes
    // its own part from front to back, `chunk` at a time, and then helps the others with theirs.
    template <class Task>
    static void each(int64_t count, int64_t chunk, const Task& task) {
        Team& team = instance();
        const int64_t part = ((count + team.size_ - 1) / team.size_ + chunk - 1) / chunk * chunk;
        for (int i = 0; i < team.size_; ++i) {
            const int owner = (thread_ + i) % team.size_;
            const int64_t end = std::min(count, (owner + 1) * part);
            for (;;) {
                int64_t first = owner * part + team.tickets_[owner].taken.fetch_add(chunk, std::memory_order_relaxed);
                if (first >= end) break;
                task(first, std::min(first + chunk, end));
            }
        }
        team.barrier();
    }

    static int size() { return instance().size_; }
    static int thread() { return thread_; }

   private:
    // Tell the core that this thread only waits.
    static void pause() {
#ifdef __x86_64__
        __builtin_ia32_pause();
#else
        asm volatile("yield");
#endif
    }

    static Team& instance() {
        static Team* team = make();
        return *team;
    }

    static Team* make() {
        static Team* team;
        team = new Team;
        // A forked child has none of the threads: it starts with a new team.
        pthread_atfork(nullptr, nullptr, [] { new (team) Team; });
        return team;
    }

    void hire() {
        int idx = ++num_workers_;
        uint32_t seen = start_.load();
        std::thread([this, idx, seen]() mutable {
            thread_ = idx;
            for (;;) {
                for (int spins = 0; start_.load() == seen && spins < 4000; ++spins) pause();
                start_.wait(seen);
                seen = start_.load();
                if (idx < int(seen & SIZE_MASK)) {
                    call_(work_);
                    barrier();
                }
            }
        }).detach();
    }

    void barrier() {
        uint32_t phase = phase_.load();
        if (num_waiting_.fetch_add(1) + 1 == size_) {
            num_waiting_ = 0;
            for (int i = 0; i < size_; ++i) tickets_[i].taken = 0;
            phase_.store(phase + 1);
            return;
        }
        for (int spins = 0; phase_.load() == phase; ++spins) {
            if (spins < 4000) {
                pause();
            } else {
                sched_yield();
            }
        }
    }

    static constexpr int MAX_SIZE = 128;
    static constexpr uint32_t SIZE_MASK = 255;  // start_: a counter of runs, and in the low bits the run's size

    inline static thread_local int thread_ = 0;

    std::mutex use_;
    int size_ = 1, num_workers_ = 0;
    void (*call_)(const void*) = nullptr;
    const void* work_ = nullptr;
    alignas(64) std::atomic<uint32_t> start_{0};
    alignas(64) std::atomic<uint32_t> phase_{0};
    alignas(64) std::atomic<int> num_waiting_{0};
    struct alignas(64) Ticket {
        std::atomic<int64_t> taken{0};
    };
    Ticket tickets_[MAX_SIZE];
};
