#include "bundle.hpp"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>

#include "golden.hpp"

namespace edge_cl {
namespace {

namespace fs = std::filesystem;

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
    for (const auto& [damage, why] : bad) {
        const test::Scratch scratch;
        const std::string copy = scratch.bundle("bundle-shared");
        ASSERT_TRUE(Bundle::open(copy));
        damage(path_of(copy, "head"));
        const Result<Bundle> bundle = Bundle::open(copy);
        ASSERT_FALSE(bundle) << why;
        EXPECT_EQ(bundle.error().code, Code::bad_bundle);
        EXPECT_NE(bundle.error().what.find(why), std::string::npos) << bundle.error().what;
        EXPECT_NE(bundle.error().mend.find("edge-cl export " + copy), std::string::npos);
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
