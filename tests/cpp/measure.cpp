// What answering costs beyond the bare calls of ONNX Runtime: time and allocations a frame.
//
//     edge_cl_measure WATCHED_LIBRARY BUNDLE [FRAMES [WIDTH HEIGHT [RGB_FILE]]]
//
// The calls are watched (see watched_onnxruntime.cpp): a frame's time and allocations are told apart by whether a graph
// was running. One thread, one frame at a time. Exit status 1: the library allocates; 77: no ONNX Runtime.
#include <time.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "edge_cl/classifier.hpp"

namespace {

thread_local bool running = false;                 // a graph
thread_local std::uint64_t allocations[2] = {};    // outside of graphs, and inside
thread_local double entered_ms = 0, graphs_ms = 0;

double cpu_ms() {
    timespec now{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return 1e3 * static_cast<double>(now.tv_sec) + 1e-6 * static_cast<double>(now.tv_nsec);
}

void count() { ++allocations[running ? 1 : 0]; }

}  // namespace

extern "C" {

__attribute__((visibility("default"))) void edge_cl_measure_entered(int graph) {
    running = graph != 0;
    if (running)
        entered_ms = cpu_ms();
    else
        graphs_ms += cpu_ms() - entered_ms;
}

// The allocator of the C library under names of its own; every other allocation function comes down to these.
void* __libc_malloc(std::size_t size);
void* __libc_calloc(std::size_t count, std::size_t size);
void* __libc_realloc(void* old, std::size_t size);
void* __libc_memalign(std::size_t alignment, std::size_t size);

__attribute__((visibility("default"))) void* malloc(std::size_t size) {
    count();
    return __libc_malloc(size);
}
__attribute__((visibility("default"))) void* calloc(std::size_t number, std::size_t size) {
    count();
    return __libc_calloc(number, size);
}
__attribute__((visibility("default"))) void* realloc(void* old, std::size_t size) {
    count();
    return __libc_realloc(old, size);
}
__attribute__((visibility("default"))) void* memalign(std::size_t alignment, std::size_t size) {
    count();
    return __libc_memalign(alignment, size);
}
__attribute__((visibility("default"))) void* aligned_alloc(std::size_t alignment, std::size_t size) {
    return memalign(alignment, size);
}
__attribute__((visibility("default"))) int posix_memalign(void** out, std::size_t alignment, std::size_t size) {
    *out = memalign(alignment, size);
    return *out == nullptr ? ENOMEM : 0;
}
}

namespace {

double median(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    return values[values.size() / 2];
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 3) {
        std::fprintf(stderr, "edge_cl_measure WATCHED_LIBRARY BUNDLE [FRAMES [WIDTH HEIGHT [RGB_FILE]]]\n");
        return 2;
    }
    const int frames = argc > 3 ? std::max(std::atoi(argv[3]), 1) : 300;
    const int width = argc > 5 ? std::atoi(argv[4]) : 640, height = argc > 5 ? std::atoi(argv[5]) : 480;
    edge_cl::Options options;
    options.threads = 1;
    options.backend = "onnxruntime";
    options.onnxruntime = argv[1];
    options.timeout = std::chrono::milliseconds(60000);
    const edge_cl::Result<edge_cl::Classifier> classifier = edge_cl::Classifier::open(argv[2], options);
    if (!classifier) {
        std::fprintf(stderr, "%s\n", classifier.error().message().c_str());
        return classifier.error().code == edge_cl::Code::no_backend ? 77 : 1;
    }
    std::vector<std::uint8_t> pixels(static_cast<std::size_t>(width) * static_cast<std::size_t>(height) * 3);
    std::uint32_t state = 1;
    for (auto& byte : pixels) byte = static_cast<std::uint8_t>((state = state * 1664525 + 1013904223) >> 24);
    if (argc > 6) {  // a real picture is decided sooner than noise
        std::FILE* const file = std::fopen(argv[6], "rb");
        if (file == nullptr || std::fread(pixels.data(), 1, pixels.size(), file) != pixels.size()) return 2;
        std::fclose(file);
    }
    edge_cl::Frame frame;
    frame.data = pixels.data();
    frame.width = width;
    frame.height = height;
    edge_cl::Prediction prediction;
    std::vector<double> own, graphs;
    std::uint64_t own_allocations = 0, graph_allocations = 0;
    const auto total = static_cast<std::size_t>(frames);
    own.reserve(total);
    graphs.reserve(total);
    for (int i = -10; i < frames; ++i) {
        graphs_ms = 0;
        allocations[0] = allocations[1] = 0;
        const double start = cpu_ms();
        const edge_cl::Status done = classifier->predict(frame, prediction);
        const double spent = cpu_ms() - start;
        const std::uint64_t outside = allocations[0], inside = allocations[1];
        if (!done) {
            std::fprintf(stderr, "%s\n", done.error().message().c_str());
            return 1;
        }
        if (i < 0) continue;  // it warms up
        own.push_back(spent - graphs_ms);
        graphs.push_back(graphs_ms);
        own_allocations += outside;
        graph_allocations += inside;
    }
    // Once there is room for three frames, two cost nothing either: as many may go on after the exit.
    constexpr std::size_t kThree = 3;
    const std::vector<edge_cl::Frame> batch(kThree, frame);
    std::vector<edge_cl::Prediction> answers(kThree);
    for (const std::size_t size : {kThree, kThree - 1}) {
        allocations[0] = 0;
        if (const edge_cl::Status done = classifier->predict(batch.data(), size, answers.data()); !done) return 1;
    }
    own_allocations += allocations[0];
    std::printf("{\"frames\": %d, \"graphs_ms\": %.3f, \"own_ms\": %.3f, \"overhead_percent\": %.2f, "
                "\"own_allocations\": %llu, \"graph_allocations_a_frame\": %llu}\n",
                frames, median(graphs), median(own), 100 * median(own) / median(graphs),
                static_cast<unsigned long long>(own_allocations),
                static_cast<unsigned long long>(graph_allocations / total));
    return own_allocations == 0 ? 0 : 1;
}
