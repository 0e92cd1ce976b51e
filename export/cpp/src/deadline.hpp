// When an answer is due, and what is done when it is late.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>

namespace edge_cl {

using Clock = std::chrono::steady_clock;

/// A moment, or none.
struct Deadline {
    Clock::time_point at = Clock::time_point::max();

    /// The moment after so much time; none for no time, and for more than the clock can count.
    static Deadline in(std::chrono::milliseconds time) {
        const Clock::time_point now = Clock::now();
        const auto most = std::chrono::duration_cast<std::chrono::milliseconds>(Clock::time_point::max() - now);
        return time.count() > 0 && time < most ? Deadline{now + time} : Deadline{};
    }
    bool is_set() const { return at != Clock::time_point::max(); }
    bool is_past() const { return is_set() && Clock::now() >= at; }
};

/// One thread that interrupts work whose deadline passes; it is started when first needed.
class Watchdog {
public:
    Watchdog() = default;
    Watchdog(const Watchdog&) = delete;
    Watchdog& operator=(const Watchdog&) = delete;
    ~Watchdog();

    /// Watches over one piece of work, from its construction until `finish`. Needs no memory but its own.
    class Watch {
    public:
        /// @param interrupt is called with `argument` by the watchdog's thread if the deadline passes; it must not wait.
        Watch(Watchdog& dog, const Deadline& deadline, void (*interrupt)(void*), void* argument);
        ~Watch() { finish(); }
        Watch(const Watch&) = delete;
        Watch& operator=(const Watch&) = delete;

        /// End the watch; return whether the work was interrupted. `interrupt` is not called any more after that.
        bool finish();

    private:
        friend class Watchdog;
        Watchdog& dog_;
        Deadline deadline_;
        void (*interrupt_)(void*);
        void* argument_;
        Watch *next_ = nullptr, *previous_ = nullptr;
        bool watched_ = false, interrupted_ = false;
    };

private:
    void run();
    void unlink(Watch& watch);

    std::mutex mutex_;
    std::condition_variable changed_;
    Watch* first_ = nullptr;
    Clock::time_point wakes_ = Clock::time_point::max();  // when the thread looks again, unless it is told to
    bool stopping_ = false;
    std::thread thread_;
};

}  // namespace edge_cl
