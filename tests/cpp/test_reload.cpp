// New versions put in force while frames are answered.
#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <thread>

#include "edge_cl/classifier.hpp"
#include "golden.hpp"
#include "manifest.hpp"

namespace edge_cl {
namespace {

namespace fs = std::filesystem;

// Write another version of a bundle in one rename: the same files under another version number.
void publish(const std::string& bundle, int version) {
    const std::string path = bundle + "/manifest.json";
    std::string text = test::read_text(path);
    const std::int64_t before = parse_manifest(text)->version;
    const std::string old_hash = text.substr(text.rfind("\"sha256\": \"") + 11, 64);
    text = test::replaced(text, "\"version\": " + std::to_string(before) + "\n", "\"version\": " + std::to_string(version) + "\n");
    const Result<Manifest> unsigned_manifest = parse_manifest(text);
    if (!unsigned_manifest) {
        const std::string& why = unsigned_manifest.error().what;
        text = test::replaced(text, old_hash, why.substr(why.find("SHA-256 ") + 8, 64));
    }
    test::write_text(bundle + "/.manifest.json.tmp", text);
    fs::rename(bundle + "/.manifest.json.tmp", path);
}

struct Scene {
    Scene() : bundle(scratch.bundle("bundle-shared")), pixels(test::Golden("answers-shared").get<std::uint8_t>("frames")) {
        frame.data = pixels.data();
        frame.width = frame.height = 40;
    }
    test::Scratch scratch;
    std::string bundle;
    std::vector<std::uint8_t> pixels;
    Frame frame;
};

TEST(Reload, PutsANewVersionInForce) {
    EDGE_CL_NEEDS_ONNXRUNTIME();
    const Scene scene;
    Result<Classifier> classifier = Classifier::open(scene.bundle);
    ASSERT_TRUE(classifier) << classifier.error().message();
    EXPECT_FALSE(classifier->reload().value());
    publish(scene.bundle, 7);
    EXPECT_EQ(classifier->version(), 2);
    EXPECT_TRUE(classifier->reload().value());
    EXPECT_EQ(classifier->version(), 7);
    Prediction prediction;
    ASSERT_TRUE(classifier->predict(scene.frame, prediction));
    EXPECT_EQ(prediction.version, 7);
}

TEST(Reload, KeepsTheVersionInForceWhereTheNewOneIsBad) {
    EDGE_CL_NEEDS_ONNXRUNTIME();
    const Scene scene;
    Result<Classifier> classifier = Classifier::open(scene.bundle);
    const std::string whole = test::read_text(scene.bundle + "/manifest.json");
    for (const std::string& bad : {std::string(), whole.substr(0, 100), test::replaced(whole, "\"r\": 10", "\"r\": 11")}) {
        test::write_text(scene.bundle + "/manifest.json", bad);
        const Result<bool> reloaded = classifier->reload();
        ASSERT_FALSE(reloaded);
        EXPECT_EQ(reloaded.error().code, Code::bad_bundle);
        Prediction prediction;
        EXPECT_TRUE(classifier->predict(scene.frame, prediction));
        EXPECT_EQ(prediction.version, 2);
    }
    fs::remove(scene.bundle + "/manifest.json");
    EXPECT_EQ(classifier->reload().error().code, Code::no_bundle);
    test::write_text(scene.bundle + "/manifest.json", whole);
    EXPECT_FALSE(classifier->reload().value());
}

// Three threads answer, one publishes, two reload: no frame fails, and versions never go back on one thread.
TEST(Reload, FailsNoFrame) {
    EDGE_CL_NEEDS_ONNXRUNTIME();
    const Scene scene;
    Options options;
    options.threads = 1;
    options.timeout = std::chrono::milliseconds(60000);
    Result<Classifier> classifier = Classifier::open(scene.bundle, options);
    ASSERT_TRUE(classifier) << classifier.error().message();
    std::atomic<bool> done{false};
    std::atomic<int> frames{0}, reloads{0};
    std::vector<std::thread> threads;
    for (int i = 0; i < 3; ++i)
        threads.emplace_back([&] {
            Prediction prediction;
            std::int64_t before = 0;
            do {
                const Status status = classifier->predict(scene.frame, prediction);
                ASSERT_TRUE(status) << status.error().message();
                ASSERT_GE(prediction.version, before);
                before = prediction.version;
                ++frames;
            } while (!done);
        });
    for (int i = 0; i < 2; ++i)
        threads.emplace_back([&] {
            do {
                const Result<bool> changed = classifier->reload();
                ASSERT_TRUE(changed) << changed.error().message();
                reloads += *changed ? 1 : 0;
            } while (!done);
        });
    for (int version = 3; version < 23; ++version) {
        publish(scene.bundle, version);
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    done = true;
    for (std::thread& thread : threads) thread.join();
    EXPECT_TRUE(classifier->reload());
    EXPECT_EQ(classifier->version(), 22);
    EXPECT_GT(reloads, 0);
    EXPECT_GT(frames, 3);
}

}  // namespace
}  // namespace edge_cl
