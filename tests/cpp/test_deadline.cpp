#include "deadline.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <cstdint>
#include <limits>
#include <thread>
#include <vector>

namespace edge_cl {
namespace {

using std::chrono::milliseconds;

void raise_flag(void* flag) { static_cast<std::atomic<bool>*>(flag)->store(true); }

TEST(Watchdog, InterruptsWhatIsLate) {
    Watchdog dog;
    std::atomic<bool> interrupted{false};
    Watchdog::Watch watch(dog, Deadline::in(milliseconds(5)), raise_flag, &interrupted);
    while (!interrupted) std::this_thread::sleep_for(milliseconds(1));
    EXPECT_TRUE(watch.finish());
}

TEST(Watchdog, LeavesWhatIsInTimeAlone) {
    Watchdog dog;
    std::atomic<bool> interrupted{false};
    for (const milliseconds time : {milliseconds(0), milliseconds(60000)}) {
        Watchdog::Watch watch(dog, Deadline::in(time), raise_flag, &interrupted);
        EXPECT_FALSE(watch.finish());
        EXPECT_FALSE(watch.finish());
    }
    EXPECT_FALSE(interrupted);
}

TEST(Watchdog, WatchesOverManyAtOnce) {
    Watchdog dog;
    std::atomic<int> late{0};
    std::vector<std::thread> threads;
    for (int i = 0; i < 8; ++i)
        threads.emplace_back([&dog, &late, i] {
            for (int j = 0; j < 50; ++j) {
                std::atomic<bool> interrupted{false};
                Watchdog::Watch watch(dog, Deadline::in(milliseconds(i % 2 == 0 ? 1 : 60000)), raise_flag, &interrupted);
                if (i % 2 == 0)
                    while (!interrupted) std::this_thread::yield();
                late += watch.finish() ? 1 : 0;
            }
        });
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(late, 200);
}

TEST(Deadline, IsPastWhenItsTimeIsOver) {
    EXPECT_FALSE(Deadline{}.is_set());
    EXPECT_FALSE(Deadline{}.is_past());
    EXPECT_FALSE(Deadline::in(milliseconds(60000)).is_past());
    EXPECT_TRUE(Deadline{Clock::now()}.is_past());
}

TEST(Deadline, IsNoneWhereTheClockCannotCountSoFar) {
    for (const std::int64_t time : {std::int64_t{9300000000000}, std::numeric_limits<std::int64_t>::max()}) {
        EXPECT_FALSE(Deadline::in(milliseconds(time)).is_set()) << time;
        EXPECT_FALSE(Deadline::in(milliseconds(time)).is_past()) << time;
    }
    EXPECT_TRUE(Deadline::in(std::chrono::hours(24 * 365)).is_set());
}

}  // namespace
}  // namespace edge_cl
