#include "manifest.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>

#include "golden.hpp"
#include "sha256.hpp"

namespace edge_cl {
namespace {

using Json = nlohmann::json;

Json golden_manifest(const std::string& layout = "shared") {
    return Json::parse(test::read_text(test::golden("bundle-" + layout + "/manifest.json")))["manifest"];
}

// Put a manifest's value into a file whose hash is right.
std::string signed_text(const Json& value) {
    return Json{{"manifest", value}, {"sha256", sha256(value.dump())}}.dump(2);
}

TEST(Manifest, ReadsWhatPythonWrites) {
    for (const char* name : {"shared", "merged", "half"}) {
        const Result<Manifest> manifest = read_manifest(test::golden(std::string("bundle-") + name));
        ASSERT_TRUE(manifest) << manifest.error().what;
        EXPECT_EQ(manifest->shared, std::string(name) != "merged");
        EXPECT_EQ(manifest->half, std::string(name) == "half");
        EXPECT_EQ(manifest->classes.size(), 6U);
        EXPECT_EQ(manifest->classes[0].task, 0);
        EXPECT_EQ(manifest->tasks(), (std::vector<std::int64_t>{0, 1}));
        EXPECT_EQ(manifest->shape.features(), 64U);
        EXPECT_EQ(manifest->shape.prefix_features() + manifest->shape.suffix_features(), 64U);
        EXPECT_EQ(manifest->preprocess.image_size, 32);
        EXPECT_EQ(manifest->preprocess.crop_fraction, 0.75);  // of the closer square
        EXPECT_EQ(manifest->temperature, 400.0);
        EXPECT_GT(manifest->threshold, 0);
        EXPECT_TRUE(std::isfinite(manifest->least_score));
        EXPECT_TRUE(manifest->has("adapter/1"));
    }
}

TEST(Manifest, TakesNoThresholdForNoLimit) {
    Json value = golden_manifest();
    value["threshold"] = nullptr;
    EXPECT_TRUE(std::isinf(parse_manifest(signed_text(value))->threshold));
}

// An absent one is that of a bundle of an earlier release.
TEST(Manifest, TakesNoLeastScoreForNoLimit) {
    Json value = golden_manifest();
    value["least_score"] = -2.5;
    EXPECT_EQ(parse_manifest(signed_text(value))->least_score, -2.5);
    value["least_score"] = 3;
    EXPECT_EQ(parse_manifest(signed_text(value))->least_score, 3);
    value["least_score"] = nullptr;
    constexpr double kNone = -std::numeric_limits<double>::infinity();
    EXPECT_EQ(parse_manifest(signed_text(value))->least_score, kNone);
    value.erase("least_score");
    EXPECT_EQ(parse_manifest(signed_text(value))->least_score, kNone);
    for (const char* name : {"bundle-earlier", "bundle-halves"})
        EXPECT_EQ(read_manifest(test::golden(name))->least_score, kNone) << name;
}

TEST(Manifest, RefusesWhatCannotBe) {
    ASSERT_TRUE(parse_manifest(signed_text(golden_manifest())));
    const std::pair<void (*)(Json&), const char*> bad[] = {
        {[](Json& m) { m.erase("format"); }, "no 'format'"},
        {[](Json& m) { m["format"] = 2; }, "format 2, and this edge-cl reads format 1"},
        {[](Json& m) { m["format"] = 1.0; }, "no whole number"},
        {[](Json& m) { m["layout"] = "split"; }, "layout 'split'"},
        {[](Json& m) { m["precision"] = "fp8"; }, "precision 'fp8'"},
        {[](Json& m) { m["version"] = "two"; }, "'version'"},
        {[](Json& m) { m["version"] = ~std::uint64_t{0}; }, "'version'"},
        {[](Json& m) { m["shape"]["width"] = 0; }, "shape cannot be"},
        {[](Json& m) { m["shape"]["width"] = 1 << 20; }, "shape cannot be"},
        {[](Json& m) { m["shape"]["width"] = m["shape"]["depth"] = m["shape"]["summaries"] = (1 << 20) - 1; },
         "shape cannot be"},
        {[](Json& m) { m["shape"]["split"] = m["shape"]["depth"]; }, "shape cannot be"},
        {[](Json& m) { m["shape"]["r"] = 1 << 19; }, "shape cannot be"},
        {[](Json& m) { m["shape"]["r"] = m["shape"]["width"].get<int>() + 1; }, "shape cannot be"},
        {[](Json& m) { m["shape"].update({{"depth", 200}, {"width", 9000}, {"r", 900}}); }, "shape cannot be"},
        {[](Json& m) { m["shape"]["summaries"] = 3; }, "shape cannot be"},
        {[](Json& m) { m["shape"].erase("r"); }, "no 'r'"},
        {[](Json& m) { m["shape"] = 3; }, "no 'depth'"},
        {[](Json& m) { m["backbone"]["preprocess"]["image_size"] = (1 << 12) + 1; }, "image size"},
        {[](Json& m) { m["backbone"]["preprocess"]["interpolation"] = "lanczos"; }, "lanczos"},
        {[](Json& m) { m["backbone"]["preprocess"]["crop_fraction"] = 0; }, "crop fraction"},
        {[](Json& m) { m["backbone"]["preprocess"]["crop_fraction"] = 1.5; }, "crop fraction"},
        {[](Json& m) { m["backbone"] = {}; }, "no 'preprocess'"},
        {[](Json& m) { m["classes"] = {{"a", 1}}; }, "no list"},
        {[](Json& m) { m["classes"][0].erase("name"); }, "no 'name'"},
        {[](Json& m) { m["classes"][0]["id"] = m["classes"][1]["id"]; }, "two classes have the id 1"},
        {[](Json& m) { m["classes"][0]["name"] = m["classes"][1]["name"]; }, "two classes have the name"},
        {[](Json& m) { m["classes"][0]["task"] = -1; }, "not from 0 to 16777215"},
        {[](Json& m) { m["classes"][0]["id"] = 1 << 24; }, "not from 0 to 16777215"},
        {[](Json& m) { m["temperature"] = 0; }, "temperature"},
        {[](Json& m) { m["temperature"] = 1e-60; }, "temperature"},
        {[](Json& m) { m["temperature"] = 1e300; }, "temperature"},
        {[](Json& m) { m["temperature"] = "warm"; }, "temperature"},
        {[](Json& m) { m["threshold"] = "far"; }, "threshold"},
        {[](Json& m) { m["least_score"] = "low"; }, "least_score"},
        {[](Json& m) { m["least_score"] = {1, 2}; }, "least_score"},
        {[](Json& m) { m["least_score"] = false; }, "least_score"},
        {[](Json& m) { m["files"] = 1; }, "no object"},
        {[](Json& m) { m["files"].erase("weights"); }, "it names no 'weights'"},
        {[](Json& m) { m = golden_manifest("merged"), m["files"].erase("merged/prefix"); }, "no 'merged/prefix'"},
        {[](Json& m) { m = golden_manifest("merged"), m["files"].erase("merged/base"); }, "no 'merged/base'"},
        {[](Json& m) { m = golden_manifest("merged"), m["files"].erase("merged/1"); }, "no 'merged/1'"},
        {[](Json& m) { m["files"]["head"]["name"] = "../" + m["files"]["head"]["name"].get<std::string>(); }, "'head'"},
        {[](Json& m) { m["files"]["head"]["name"] = "/etc/passwd"; }, "'head'"},
        {[](Json& m) { m["files"]["head"]["name"] = ""; }, "'head'"},
        {[](Json& m) { m["files"]["head"]["name"] = m["files"]["prefix"]["name"]; }, "'head'"},
        {[](Json& m) { m["files"]["head"]["name"] = m["files"]["head"]["name"].get<std::string>() + ".onnx"; }, "'head'"},
        {[](Json& m) { m["files"]["head"]["sha256"] = "00"; }, "'head'"},
        {[](Json& m) { m["files"]["head"]["sha256"] = std::string(64, 'G'); }, "'head'"},
        {[](Json& m) { m["files"]["head"]["size"] = -1; }, "'head'"},
        {[](Json& m) { m["files"]["head"]["size"] = 1.5; }, "'size'"},
    };
    for (const auto& [change, why] : bad) {
        Json value = golden_manifest();
        change(value);
        const Result<Manifest> manifest = parse_manifest(signed_text(value));
        ASSERT_FALSE(manifest) << why;
        EXPECT_EQ(manifest.error().code, Code::bad_bundle);
        EXPECT_NE(manifest.error().what.find(why), std::string::npos) << why << ": " << manifest.error().what;
    }
}

TEST(Manifest, RefusesBytesThatAreNone) {
    const std::string whole = test::read_text(test::golden("bundle-shared/manifest.json"));
    for (std::size_t size = 0; size + 2 < whole.size(); size += 97)
        EXPECT_FALSE(parse_manifest(whole.substr(0, size))) << size;
    EXPECT_FALSE(parse_manifest(test::replaced(whole, "\"version\": 2", "\"version\": 3")));
    EXPECT_FALSE(parse_manifest(test::replaced(whole, "\"version\": 2", "\"version\": 2.0")));
    EXPECT_FALSE(parse_manifest(std::string(kMostManifest + 1, ' ')));
    EXPECT_FALSE(parse_manifest(std::string(100000, '[')));
    EXPECT_FALSE(parse_manifest("\xff\xfe"));
}

TEST(Manifest, SaysWhereThereIsNoBundle) {
    const test::Scratch scratch;
    const Result<Manifest> none = read_manifest(scratch.path().string());
    ASSERT_FALSE(none);
    EXPECT_EQ(none.error().code, Code::no_bundle);
    EXPECT_EQ(none.error().mend, "Make one: edge-cl export " + scratch.path().string());
}

TEST(Manifest, SaysHowAStoreBecomesABundle) {
    const test::Scratch scratch;
    const std::filesystem::path store = scratch.path() / "my robot";
    std::filesystem::create_directories(store / "objects");
    EXPECT_NE(read_manifest(store.string()).error().what.find("is no bundle"), std::string::npos);
    std::filesystem::create_directories(store / "versions");
    const Result<Manifest> none = read_manifest(store.string() + "/");
    ASSERT_FALSE(none);
    EXPECT_EQ(none.error().code, Code::no_bundle);
    EXPECT_EQ(none.error().what, store.string() + "/ is a store, not a bundle.");
    const std::string bundle = std::filesystem::canonical(store).string() + "-bundle";
    EXPECT_EQ(none.error().mend, "Make a bundle of it, and use that: " + export_command(bundle) + " --store '" +
                                     store.string() + "/'");
}

TEST(Manifest, QuotesPathsInCommands) {
    EXPECT_EQ(export_command("/opt/my-robot_1.0/bundle"), "edge-cl export /opt/my-robot_1.0/bundle");
    EXPECT_EQ(export_command("my robot"), "edge-cl export 'my robot'");
    EXPECT_EQ(export_command("it's"), "edge-cl export 'it'\"'\"'s'");
    EXPECT_EQ(export_command("m\u00fcll"), "edge-cl export 'm\u00fcll'");
    EXPECT_EQ(export_command(""), "edge-cl export ''");
}

}  // namespace
}  // namespace edge_cl
