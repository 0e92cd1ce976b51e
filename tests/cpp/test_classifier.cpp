#include "edge_cl/classifier.hpp"

#include <gtest/gtest.h>
#include <sys/inotify.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <thread>

#include "bundle.hpp"
#include "golden.hpp"
#include "onnx_backend.hpp"

namespace edge_cl {

std::string test::missing_onnxruntime() {
    static const std::string why = [] {
        const Result<Bundle> bundle = Bundle::open(golden("bundle-shared"));
        Watchdog dog;
        const auto backend = make_onnx_backend(*bundle, {}, nullptr, dog);
        return !backend && backend.error().code == Code::no_backend ? backend.error().message() : std::string();
    }();
    return why;
}

namespace {

Options options_of(const std::string& rule, int top = 6) {
    Options options;
    options.rule = rule;
    options.threads = 1;
    options.top = top;
    return options;
}

// Frames of the golden answers.
struct Frames {
    explicit Frames(const test::Golden& golden) : pixels(golden.get<std::uint8_t>("frames")) {
        const std::size_t height = golden.size("frames", 1), width = golden.size("frames", 2);
        for (std::size_t i = 0; i < golden.size("frames", 0); ++i) {
            Frame frame;
            frame.data = pixels.data() + i * height * width * 3;
            frame.width = static_cast<int>(width);
            frame.height = static_cast<int>(height);
            all.push_back(frame);
        }
    }
    std::vector<std::uint8_t> pixels;
    std::vector<Frame> all;
};

class Golden : public testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(Bundles, Golden, testing::Values("shared", "merged", "half", "earlier", "halves"));

// One frame at a time, and all of them as one batch of more than are run at once.
TEST_P(Golden, AnswersAsPythonDoes) {
    EDGE_CL_NEEDS_ONNXRUNTIME();
    const test::Golden golden("answers-" + GetParam());
    const Frames frames(golden);
#if defined(__x86_64__)
    const double tolerance = 2e-5;
#else  // ONNX Runtime computes fp16 in fp16 where the processor can, and the answers were made where it cannot
    const double tolerance = GetParam() == "half" ? 5e-3 : 2e-5;
#endif
    for (const char* rule : {"routed", "base"}) {
        Options options = options_of(rule);
        const Result<Classifier> sooner = Classifier::open(test::golden("bundle-" + GetParam()), options);
        options.unknown_score = true;
        const Result<Classifier> classifier = Classifier::open(test::golden("bundle-" + GetParam()), options);
        ASSERT_TRUE(classifier) << classifier.error().message();
        ASSERT_TRUE(sooner) << sooner.error().message();
        const std::vector<std::string> names = classifier->classes();
        const auto wanted = golden.get<float>(rule);
        const auto unknown = golden.get<std::int64_t>(rule == std::string("routed") ? "routed_unknown" : "unknown");
        const auto score = golden.get<float>(rule + std::string("_unknown_score"));
        std::vector<Prediction> batch(frames.all.size());
        ASSERT_TRUE(classifier->predict(frames.all.data(), frames.all.size(), batch.data()));
        for (std::size_t i = 0; i < frames.all.size(); ++i) {
            Prediction single;
            ASSERT_TRUE(sooner->predict(frames.all[i], single));
            EXPECT_EQ(single.unknown, unknown[i] != 0) << i;
            EXPECT_TRUE(std::isnan(single.unknown_score)) << i;
            ASSERT_TRUE(classifier->predict(frames.all[i], single));
            for (const Prediction* found : {&static_cast<const Prediction&>(single), &static_cast<const Prediction&>(batch[i])}) {
                std::map<std::string, float> by_name;
                for (const Candidate& candidate : found->top) by_name[candidate.label] = candidate.confidence;
                for (std::size_t c = 0; c < names.size(); ++c)
                    EXPECT_NEAR(by_name.at(names[c]), wanted[i * names.size() + c], tolerance) << rule << " " << i;
                EXPECT_EQ(found->unknown, unknown[i] != 0) << i;
                EXPECT_NEAR(found->unknown_score, score[i], 100 * tolerance * (1 + std::abs(score[i]))) << rule << " " << i;
                EXPECT_EQ(found->label, found->top[0].label);
                EXPECT_EQ(found->confidence, found->top[0].confidence);
                EXPECT_EQ(found->version, classifier->version());
            }
        }
    }
}

TEST(Classifier, ListsAsManyClassesAsAreAskedFor) {
    EDGE_CL_NEEDS_ONNXRUNTIME();
    const Frames frames{test::Golden("answers-shared")};
    for (const auto& [top, listed] : {std::pair{1, 1U}, {3, 3U}, {100, 6U}}) {
        const Result<Classifier> classifier =
            Classifier::open(test::golden("bundle-shared"), options_of("routed", top));
        Prediction prediction;
        ASSERT_TRUE(classifier->predict(frames.all[0], prediction));
        ASSERT_EQ(prediction.top.size(), listed);
        for (std::size_t i = 1; i < prediction.top.size(); ++i)
            EXPECT_GE(prediction.top[i - 1].confidence, prediction.top[i].confidence);
    }
}

TEST(Classifier, AnswersOnSeveralThreads) {
    EDGE_CL_NEEDS_ONNXRUNTIME();
    const Frames frames{test::Golden("answers-shared")};
    const Result<Classifier> classifier = Classifier::open(test::golden("bundle-shared"), options_of("routed"));
    std::vector<Prediction> expected(frames.all.size());
    ASSERT_TRUE(classifier->predict(frames.all.data(), frames.all.size(), expected.data()));
    std::vector<std::thread> threads;
    for (std::size_t t = 0; t < 4; ++t)
        threads.emplace_back([&, t] {
            Prediction prediction;
            for (std::size_t i = 0; i < 40; ++i) {
                const std::size_t place = (i + t) % frames.all.size();
                ASSERT_TRUE(classifier->predict(frames.all[place], prediction));
                EXPECT_EQ(prediction.label, expected[place].label);
                EXPECT_NEAR(prediction.confidence, expected[place].confidence, 1e-5);
            }
        });
    for (std::thread& thread : threads) thread.join();
}

TEST(Classifier, HasOnnxRuntimeReportNothing) {
    EDGE_CL_NEEDS_ONNXRUNTIME();
    ASSERT_TRUE(Classifier::open(test::golden("bundle-shared"), options_of("base")));
    EXPECT_STREQ(std::getenv("ORT_DISABLE_TELEMETRY"), "1");
}

TEST(Classifier, NoFramesAreNoError) {
    EDGE_CL_NEEDS_ONNXRUNTIME();
    const Result<Classifier> classifier = Classifier::open(test::golden("bundle-shared"), options_of("routed"));
    EXPECT_TRUE(classifier->predict(nullptr, 0, nullptr));
    const Status none = classifier->predict(nullptr, 1, nullptr);
    ASSERT_FALSE(none);
    EXPECT_EQ(none.error().code, Code::bad_frame);
}

TEST(Classifier, RefusesABadFrameAndLeavesTheAnswerAlone) {
    EDGE_CL_NEEDS_ONNXRUNTIME();
    const Result<Classifier> classifier = Classifier::open(test::golden("bundle-shared"), options_of("routed"));
    Prediction prediction;
    prediction.label = "as it was";
    const Status bad = classifier->predict(Frame{}, prediction);
    ASSERT_FALSE(bad);
    EXPECT_EQ(bad.error().code, Code::bad_frame);
    EXPECT_EQ(prediction.label, "as it was");
}

TEST(Classifier, SaysThatItIsLate) {
    EDGE_CL_NEEDS_ONNXRUNTIME();
    const std::vector<std::uint8_t> pixels(std::size_t{8000} * 8000, 100);
    Frame frame;
    frame.data = pixels.data();
    frame.width = frame.height = 8000;  // takes long enough to resample
    frame.format = PixelFormat::grey8;
    Options options = options_of("routed");
    options.timeout = std::chrono::milliseconds(1);
    const Result<Classifier> classifier = Classifier::open(test::golden("bundle-shared"), options);
    Prediction prediction;
    const Status late = classifier->predict(frame, prediction);
    ASSERT_FALSE(late);
    EXPECT_EQ(late.error().code, Code::timeout);
    options.timeout = std::chrono::milliseconds(60000);
    EXPECT_TRUE(Classifier::open(test::golden("bundle-shared"), options)->predict(frame, prediction));
}

TEST(Classifier, RefusesOptionsThatCannotBe) {
    const std::pair<void (*)(Options&), const char*> bad[] = {
        {[](Options& o) { o.backend = "onnxruntme"; }, "Did you mean 'onnxruntime'?"},
        {[](Options& o) { o.backend = "openvino"; }, "Unknown backend 'openvino'"},
        {[](Options& o) { o.rule = "route"; }, "Did you mean 'routed'?"},
        {[](Options& o) { o.top = 0; }, "top 0"},
        {[](Options& o) { o.threads = -1; }, "threads -1"},
        {[](Options& o) { o.timeout = std::chrono::milliseconds(-1); }, "timeout -1"},
    };
    for (const auto& [change, why] : bad) {
        Options options;
        change(options);
        const Result<Classifier> classifier = Classifier::open(test::golden("bundle-shared"), options);
        ASSERT_FALSE(classifier) << why;
        EXPECT_EQ(classifier.error().code, Code::bad_option);
        EXPECT_NE(classifier.error().message().find(why), std::string::npos) << classifier.error().message();
    }
}

TEST(Classifier, SaysWhatIsMissing) {
    Options options;
    options.backend = "onnxruntime";
    options.onnxruntime = "/nowhere/libonnxruntime.so";
    const Result<Classifier> no_library = Classifier::open(test::golden("bundle-shared"), options);
    ASSERT_FALSE(no_library);
    EXPECT_EQ(no_library.error().code, Code::no_backend);
    options.backend = "tensorrt";
    options.tensorrt = "/nowhere/libnvinfer.so";
    const Result<Classifier> no_tensorrt = Classifier::open(test::golden("bundle-shared"), options);
    ASSERT_FALSE(no_tensorrt);
    EXPECT_EQ(no_tensorrt.error().code, Code::no_backend);
    EXPECT_FALSE(no_tensorrt.error().mend.empty());
    const Result<Classifier> no_bundle = Classifier::open("/nowhere");
    ASSERT_FALSE(no_bundle);
    EXPECT_EQ(no_bundle.error().code, Code::no_bundle);
}

// Change a manifest's text, and its hash accordingly.
void change_manifest(const std::string& bundle, const std::string& from, const std::string& to) {
    const std::string manifest = bundle + "/manifest.json";
    std::string text = test::replaced(test::read_text(manifest), from, to);
    const std::string old_hash = text.substr(text.rfind("\"sha256\": \"") + 11, 64);
    const std::string why = parse_manifest(text).error().what;  // "its content has SHA-256 X, expected Y"
    text = test::replaced(text, old_hash, why.substr(why.find("SHA-256 ") + 8, 64));
    test::write_text(manifest, text);
    ASSERT_TRUE(parse_manifest(text));
}

// Scores over a temperature so small are infinite, and their probabilities no numbers.
TEST(Classifier, RefusesAnswersThatAreNoNumbers) {
    EDGE_CL_NEEDS_ONNXRUNTIME();
    const test::Scratch scratch;
    const std::string copy = scratch.bundle("bundle-shared");
    change_manifest(copy, "\"temperature\": 400.0", "\"temperature\": 1e-44");
    const Result<Classifier> classifier = Classifier::open(copy, options_of("base"));  // it answers once to warm up
    ASSERT_FALSE(classifier);
    EXPECT_EQ(classifier.error().code, Code::backend);
    EXPECT_NE(classifier.error().message().find("are no numbers"), std::string::npos) << classifier.error().message();
}

// Return what a manifest says of a key, as it is written.
std::string said(const std::string& bundle, const std::string& key) {
    const std::string text = test::read_text(bundle + "/manifest.json");
    const std::size_t at = text.find("\"" + key + "\": ");
    return text.substr(at, text.find_first_of(",\n", at) - at);
}

// Nothing is too far; a least score beyond single precision is one that all or none have.
TEST(Classifier, CallsUnknownByTheLeastScoreAlone) {
    EDGE_CL_NEEDS_ONNXRUNTIME();
    const Frames frames{test::Golden("answers-shared")};
    const std::size_t all = frames.all.size();
    const auto count = [&](const std::string& bundle) {
        std::vector<Prediction> found(all);
        const Result<Classifier> classifier = Classifier::open(bundle, options_of("base"));
        EXPECT_TRUE(classifier->predict(frames.all.data(), all, found.data()));
        return static_cast<std::size_t>(
            std::count_if(found.begin(), found.end(), [](const Prediction& p) { return p.unknown; }));
    };
    const test::Scratch scratch;
    const std::string copy = scratch.bundle("bundle-shared");
    change_manifest(copy, said(copy, "threshold"), "\"threshold\": null");
    EXPECT_GT(count(copy), 0U);
    EXPECT_LT(count(copy), all);
    for (const auto& [least, unknown] : {std::pair{"null", std::size_t{0}}, {"-1e300", 0}, {"1e300", all}}) {
        change_manifest(copy, said(copy, "least_score"), std::string("\"least_score\": ") + least);
        EXPECT_EQ(count(copy), unknown) << least;
    }
}

// Counts how often a file is opened.
class OpenCount {
public:
    explicit OpenCount(const std::string& path) : queue_(::inotify_init1(IN_NONBLOCK)) {
        EXPECT_GE(::inotify_add_watch(queue_, path.c_str(), IN_OPEN | IN_CLOSE), 0);  // equal events in a row are one
    }
    OpenCount(const OpenCount&) = delete;
    OpenCount& operator=(const OpenCount&) = delete;
    ~OpenCount() { ::close(queue_); }

    int value() const {
        int count = 0;
        for (inotify_event event; ::read(queue_, &event, sizeof event) == sizeof event;)
            count += (event.mask & IN_OPEN) != 0 ? 1 : 0;
        return count;
    }

private:
    int queue_;
};

TEST(Classifier, VerifiesABadBundleOnceWhereNobodyUpdatesIt) {
    const test::Scratch scratch;
    const std::string copy = scratch.bundle("bundle-shared");
    change_manifest(copy, "\"id\": 0", "\"id\": 99");  // every file is whole, but the task's branch speaks of others
    const OpenCount opened(copy + "/" + read_manifest(copy)->files.at("weights").name);
    const Result<Classifier> classifier = Classifier::open(copy);
    ASSERT_FALSE(classifier);
    EXPECT_EQ(classifier.error().code, Code::bad_bundle);
    EXPECT_EQ(opened.value(), 1);
}

// A graph that is whole, but not what the manifest's layout asks for.
TEST(Classifier, RefusesGraphsOfAnotherShape) {
    EDGE_CL_NEEDS_ONNXRUNTIME();
    const test::Scratch scratch;
    const std::string copy = scratch.bundle("bundle-shared");
    change_manifest(copy, "\"tokens\": 5", "\"tokens\": 6");
    const Result<Classifier> classifier = Classifier::open(copy);
    ASSERT_FALSE(classifier);
    EXPECT_EQ(classifier.error().code, Code::bad_bundle);
    EXPECT_NE(classifier.error().what.find("'tokens' has another type or shape"), std::string::npos)
        << classifier.error().what;
}

}  // namespace
}  // namespace edge_cl
