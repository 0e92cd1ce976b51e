// The loop of a robot: frames at a fixed rate, a task learned meanwhile, and the bundle taken over without a stop.
//
//     robot_loop BUNDLE [--rate HZ] [--seconds S] [--reload-every S] [--learn COMMAND] [--after S] [--threads N]
//
// One thread makes frames (a camera would), one answers, one reloads. A command given with --learn, such as
// "edge-cl learn --new-classes new/ --export BUNDLE", is started after some seconds; when it has ended, the bundle is
// reloaded at once. At the end one JSON object and a histogram of latencies are printed. Exit status 1: a frame failed.
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iostream>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "edge_cl/classifier.hpp"
#include "latency.hpp"
#include "learning.hpp"

namespace {

using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;

std::atomic<bool> stopped{false};

struct Settings {
    std::string bundle, learn;
    double rate_hz = 30, seconds = 10, reload_every_s = 5, after_s = 2;
    edge_cl::Options options;
};

// The newest frame, handed from the camera to the loop; older ones are dropped.
class Latest {
public:
    void put(std::vector<std::uint8_t>& pixels) {
        const std::lock_guard lock(mutex_);
        if (fresh_) ++dropped_;
        pixels_.swap(pixels);
        made_ = Clock::now();
        fresh_ = true;
        ready_.notify_one();
    }
    bool take(std::vector<std::uint8_t>& pixels, Clock::time_point& made) {
        std::unique_lock lock(mutex_);
        if (!ready_.wait_for(lock, std::chrono::milliseconds(200), [this] { return fresh_; })) return false;
        pixels_.swap(pixels);
        made = made_;
        fresh_ = false;
        return true;
    }
    std::uint64_t dropped() const { return dropped_; }

private:
    std::mutex mutex_;
    std::condition_variable ready_;
    std::vector<std::uint8_t> pixels_;
    Clock::time_point made_;
    bool fresh_ = false;
    std::atomic<std::uint64_t> dropped_{0};
};

constexpr int kWidth = 640, kHeight = 480;

// Stands for a camera: coloured stripes that move.
void draw(std::vector<std::uint8_t>& pixels, unsigned time) {
    pixels.resize(std::size_t{kWidth} * kHeight * 3);
    for (std::size_t i = 0; i < pixels.size(); ++i)
        pixels[i] = static_cast<std::uint8_t>((i / 3 % kWidth + time * 3) / 8 * (i % 3 + 1) * 37);
}

double memory_mb() {
    std::ifstream file("/proc/self/statm");
    long pages = 0, resident = 0;
    file >> pages >> resident;
    return static_cast<double>(resident) * static_cast<double>(sysconf(_SC_PAGESIZE)) / (1 << 20);
}

bool read_settings(int argc, char** argv, Settings& settings) {
    settings.bundle = argc < 2 ? "" : argv[1];
    if (settings.bundle.empty() || settings.bundle[0] == '-') return false;  // "--help" too
    for (int i = 2; i + 1 < argc; i += 2) {
        const std::string name = argv[i], value = argv[i + 1];
        if (name == "--rate") settings.rate_hz = std::stod(value);
        else if (name == "--seconds") settings.seconds = std::stod(value);
        else if (name == "--reload-every") settings.reload_every_s = std::stod(value);
        else if (name == "--after") settings.after_s = std::stod(value);
        else if (name == "--learn") settings.learn = value;
        else if (name == "--threads") settings.options.threads = std::stoi(value);
        else if (name == "--backend") settings.options.backend = value;
        else return false;
    }
    return argc % 2 == 0 && settings.rate_hz > 0 && settings.reload_every_s > 0;
}

struct Reloads {
    std::atomic<std::uint64_t> tried{0}, changed{0}, refused{0};
};

// Reloads at fixed times, and when a task has been learned.
void keep_up_to_date(edge_cl::Classifier& classifier, const Settings& settings, Reloads& reloads) {
    Learning learning(settings.learn);
    const Clock::time_point start = Clock::now();
    Clock::time_point next = start + std::chrono::duration_cast<Clock::duration>(Seconds(settings.reload_every_s));
    bool begun = settings.learn.empty();
    while (!stopped) {
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
        bool due = Clock::now() >= next;
        if (!begun && Seconds(Clock::now() - start).count() >= settings.after_s) {
            begun = true;
            if (!learning.start()) std::cerr << "The learning could not be started.\n";
        }
        if (const auto code = learning.finished()) {
            std::cerr << "The learning has ended with status " << *code << ".\n";
            due = true;
        }
        if (!due) continue;
        next = Clock::now() + std::chrono::duration_cast<Clock::duration>(Seconds(settings.reload_every_s));
        ++reloads.tried;
        const edge_cl::Result<bool> changed = classifier.reload();
        if (!changed) {
            ++reloads.refused;
            std::cerr << changed.error().message() << "\n";
        } else if (*changed) {
            ++reloads.changed;
        }
    }
}

}  // namespace

int main(int argc, char** argv) {
    Settings settings;
    if (!read_settings(argc, argv, settings)) {
        std::cerr << "robot_loop BUNDLE [--rate HZ] [--seconds S] [--reload-every S] [--learn COMMAND] [--after S] "
                     "[--threads N] [--backend NAME]\n";
        return 2;
    }
    std::signal(SIGINT, [](int) { stopped = true; });
    edge_cl::Result<edge_cl::Classifier> classifier = edge_cl::Classifier::open(settings.bundle, settings.options);
    if (!classifier) {
        std::cerr << classifier.error().message() << "\n";
        return 1;
    }
    Latest latest;
    Reloads reloads;
    std::thread camera([&] {
        std::vector<std::uint8_t> pixels;
        Clock::time_point next = Clock::now();
        for (unsigned time = 0; !stopped; ++time) {
            draw(pixels, time);
            latest.put(pixels);
            next += std::chrono::duration_cast<Clock::duration>(Seconds(1 / settings.rate_hz));
            std::this_thread::sleep_until(next);
        }
    });
    std::thread reloading([&] { keep_up_to_date(*classifier, settings, reloads); });

    Latency latency;
    edge_cl::Prediction prediction;
    std::vector<std::uint8_t> pixels;
    std::uint64_t failed = 0, switches = 0;
    std::int64_t version = classifier->version();
    double early_mb = 0, late_mb = 0;  // most memory in the second and in the last quarter of the time
    const Clock::time_point start = Clock::now();
    while (!stopped) {
        const double elapsed = Seconds(Clock::now() - start).count();
        if (elapsed >= settings.seconds) break;
        Clock::time_point made;
        if (!latest.take(pixels, made)) continue;
        edge_cl::Frame frame;
        frame.data = pixels.data();
        frame.size_bytes = pixels.size();
        frame.width = kWidth;
        frame.height = kHeight;
        const edge_cl::Status done = classifier->predict(frame, prediction);
        latency.add(1e3 * Seconds(Clock::now() - made).count());
        if (!done) {
            ++failed;
            std::cerr << done.error().message() << "\n";
        } else if (prediction.version != version) {
            version = prediction.version;
            ++switches;
        }
        if (latency.count() % 30 == 0) {
            const double share = elapsed / settings.seconds;
            if (share >= 0.25 && share < 0.5) early_mb = std::max(early_mb, memory_mb());
            if (share >= 0.75) late_mb = std::max(late_mb, memory_mb());
        }
    }
    stopped = true;
    camera.join();
    reloading.join();
    std::printf("{\"frames\": %llu, \"failed\": %llu, \"dropped\": %llu, \"reloads\": %llu, \"changed\": %llu, "
                "\"refused\": %llu, \"versions_seen\": %llu, \"median_ms\": %.2f, \"p99_ms\": %.2f, "
                "\"longest_ms\": %.2f, \"memory_mb\": {\"second_quarter\": %.1f, \"last_quarter\": %.1f}}\n",
                static_cast<unsigned long long>(latency.count()), static_cast<unsigned long long>(failed),
                static_cast<unsigned long long>(latest.dropped()), static_cast<unsigned long long>(reloads.tried),
                static_cast<unsigned long long>(reloads.changed), static_cast<unsigned long long>(reloads.refused),
                static_cast<unsigned long long>(switches + 1), latency.quantile_ms(0.5), latency.quantile_ms(0.99),
                latency.longest_ms(), early_mb, late_mb);
    std::fflush(stdout);
    latency.print(std::cerr);
    return failed == 0 ? 0 : 1;
}
