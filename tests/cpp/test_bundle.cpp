#include "bundle.hpp"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cmath>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>

#include "golden.hpp"
#include "sha256.hpp"

namespace edge_cl {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

std::string path_of(const std::string& bundle, const std::string& role) {
    return bundle + "/" + read_manifest(bundle)->files.at(role).name;
}

TEST(Bundle, OpensWhatIsWhole) {
    for (const char* name : {"bundle-shared", "bundle-merged", "bundle-half", "bundle-earlier", "bundle-halves"}) {
        const Result<Bundle> bundle = Bundle::open(test::golden(name));
        ASSERT_TRUE(bundle) << bundle.error().message();
        const Result<Head> head = bundle->head();
        ASSERT_TRUE(head) << head.error().message();
        EXPECT_EQ(head->classes(), 6U);
        EXPECT_EQ(head->branches.size(), 2U);
        EXPECT_EQ(bundle->adapters()->size(), 2U);  // of the base branch and the second task
        EXPECT_EQ(bundle->merged_projections()->size(), 1U);
        EXPECT_FALSE(bundle->file("adapter/9"));
        EXPECT_FALSE(bundle->tensors("adapter/9"));
    }
}

TEST(Bundle, RefusesWhatIsDamaged) {
    const std::pair<void (*)(const std::string&), const char*> bad[] = {
        {[](const std::string& file) { fs::remove(file); }, "cannot be read: No such file"},
        {[](const std::string& file) { fs::resize_file(file, 100); }, "has 100 bytes, expected"},
        {[](const std::string& file) { test::write_text(file, std::string(fs::file_size(file), 'x')); },
         "has other content"},
        {[](const std::string& file) { fs::rename(file, file + "~"), fs::create_symlink(file + "~", file); },
         "is no plain file"},
        {[](const std::string& file) { fs::remove(file), fs::create_directory(file); }, "is no plain file"},
        {[](const std::string& file) { fs::remove(file), ::mkfifo(file.c_str(), 0600); }, "is no plain file"},
    };
    for (const char* role : {"head", "exit"})
        for (const auto& [damage, why] : bad) {
            const test::Scratch scratch;
            const std::string copy = scratch.bundle("bundle-shared");
            ASSERT_TRUE(Bundle::open(copy));
            damage(path_of(copy, role));
            const Result<Bundle> bundle = Bundle::open(copy);
            ASSERT_FALSE(bundle) << role << ": " << why;
            EXPECT_EQ(bundle.error().code, Code::bad_bundle);
            EXPECT_NE(bundle.error().what.find(why), std::string::npos) << bundle.error().what;
            EXPECT_NE(bundle.error().mend.find("edge-cl export " + copy), std::string::npos);
        }
}

// The tensors of a file, which a forger changes.
struct Forgery {
    Json header;
    std::string data;

    void set(const std::string& name, std::size_t place, float value) {
        std::memcpy(&data[header[name]["data_offsets"][0].get<std::size_t>() + 4 * place], &value, sizeof value);
    }
};

// Put changed tensors in a role's place, named and described as they should be.
void forge(const std::string& bundle, const std::string& role, void (*change)(Forgery&)) {
    const std::string text = test::read_text(path_of(bundle, role));
    std::uint64_t length = 0;
    std::memcpy(&length, text.data(), sizeof length);
    const auto end = static_cast<std::size_t>(8 + length);
    Forgery forgery{Json::parse(text.substr(8, end - 8)), text.substr(end)};
    change(forgery);
    const std::string header = forgery.header.dump();
    length = header.size();
    std::string forged(sizeof length, ' ');
    std::memcpy(forged.data(), &length, sizeof length);
    forged += header + forgery.data;
    const std::string digest = sha256(forged), name = "forged-" + digest.substr(0, 16) + ".safetensors";
    test::write_text(bundle + "/" + name, forged);
    Json manifest = Json::parse(test::read_text(bundle + "/" + kManifest));
    manifest["manifest"]["files"][role] = {{"name", name}, {"sha256", digest}, {"size", forged.size()}};
    manifest["sha256"] = sha256(manifest["manifest"].dump());
    test::write_text(bundle + "/" + kManifest, manifest.dump());
}

TEST(Bundle, RefusesForgedTensors) {
    struct Bad {
        const char* role;
        void (*change)(Forgery&);
        const char* why;
    };
    const Bad bad[] = {
        {"exit", [](Forgery& f) { f.header["bias"].swap(f.header["centre"]); }, ": bias has 32 along axis 0, not 6."},
        {"exit", [](Forgery& f) { f.header["weight"]["shape"] = {3, 32}; }, ": weight has 3 along axis 0, not 6."},
        {"exit", [](Forgery& f) { f.header["bias"]["shape"] = {2, 3}; }, ": bias is missing, or not of 1 dimensions."},
        {"exit", [](Forgery& f) { f.header["gain"]["shape"] = {30, 1}; }, ": gain is missing, or not of 1 dimensions."},
        {"exit", [](Forgery& f) { f.header["fits"] = f.header["fit"], f.header.erase("fit"); }, ": fit is missing, or"},
        {"exit", [](Forgery& f) { f.header["fit"]["dtype"] = "I32"; }, ": fit is I32, not F32 or F16."},
        {"exit", [](Forgery& f) { f.header["fit"]["dtype"] = "F64"; }, " cannot be read. "},
        {"exit", [](Forgery& f) { f.set("centre", 1, std::nanf("")); }, ": centre holds values that are not finite."},
        {"exit", [](Forgery& f) { f.set("weight_scale", 0, std::nanf("")); }, ": weight_scale holds values that are not"},
        {"exit", [](Forgery& f) { f.set("fit", 0, 0); }, ": its temperature or confidence is not positive."},
        {"exit", [](Forgery& f) { f.set("fit", 1, std::numeric_limits<float>::infinity()); }, ": fit holds values"},
        {"exit", [](Forgery& f) { f.set("fit", 2, std::nanf("")); }, ": fit holds values that are not finite."},
        {"exit", [](Forgery& f) { f.set("fit", 2, -1); }, ": its temperature or confidence is not positive."},
        {"exit", [](Forgery& f) { f.set("variance", 0, 0); }, ": its variance is not positive."},
        {"exit", [](Forgery& f) { f.data.pop_back(); }, " cannot be read. "},
        {"spread", [](Forgery& f) { f.header["weight"]["shape"] = {12, 12}; }, ": weight has 12 along axis 1, not 6."},
        {"spread", [](Forgery& f) { f.header["weight"]["shape"] = {16, 9}; }, ": its weight has no whole number of rows"},
        {"spread", [](Forgery& f) { f.header["offset"].swap(f.header["cost"]); }, ": offset has 6 along axis 0, not 24."},
        {"spread", [](Forgery& f) { f.set("cost", 1, std::nanf("")); }, ": cost holds values that are not finite."},
        {"branch/1", [](Forgery& f) { f.set("share", 0, 5); }, ": its share is not from 0 to 1, or its temperature"},
        {"branch/1", [](Forgery& f) { f.set("share", 0, -1); }, ": its share is not from 0 to 1, or its temperature"},
        {"branch/1", [](Forgery& f) { f.set("share", 1, 0); }, ": its share is not from 0 to 1, or its temperature"},
    };
    for (const auto& [role, change, why] : bad) {
        const test::Scratch scratch;
        const std::string copy = scratch.bundle("bundle-shared");
        forge(copy, role, [](Forgery&) {});
        const Result<Bundle> same = Bundle::open(copy);
        ASSERT_TRUE(same) << same.error().message();
        ASSERT_TRUE(same->head());
        forge(copy, role, change);
        const Result<Bundle> bundle = Bundle::open(copy);
        ASSERT_TRUE(bundle) << bundle.error().message();
        const Result<Head> head = bundle->head();
        ASSERT_FALSE(head) << why;
        EXPECT_EQ(head.error().code, Code::bad_bundle);
        EXPECT_NE(head.error().what.find(path_of(copy, role) + why), std::string::npos) << head.error().what;
        EXPECT_NE(head.error().mend.find("edge-cl export " + copy), std::string::npos);
    }
}

TEST(Bundle, NamesEveryFault) {
    const test::Scratch scratch;
    const std::string copy = scratch.bundle("bundle-shared");
    const std::string head = path_of(copy, "head"), prefix = path_of(copy, "prefix");
    fs::remove(head);
    fs::remove(prefix);
    const Result<Bundle> bundle = Bundle::open(copy);
    ASSERT_FALSE(bundle);
    EXPECT_NE(bundle.error().what.find(head), std::string::npos);
    EXPECT_NE(bundle.error().what.find(prefix), std::string::npos);
}

TEST(Bundle, DoesNotVerifyTwiceWhatHasNotChanged) {
    const test::Scratch scratch;
    const std::string copy = scratch.bundle("bundle-shared");
    const Result<Bundle> before = Bundle::open(copy);
    fs::remove(path_of(copy, "head"));
    EXPECT_TRUE(Bundle::open(copy, &*before));
    EXPECT_FALSE(Bundle::open(copy));
}

}  // namespace
}  // namespace edge_cl
