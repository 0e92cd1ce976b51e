#include <gtest/gtest.h>

#include <string>

#include "json_text.hpp"

namespace edge_cl {
namespace {

TEST(JsonText, TakesTheSpacesOutOfAMember) {
    const std::string text = "{\n  \"a\": {\"x\": [1, 2.50, \"b c\\\" }\"], \"sha256\": 1},\n  \"sha256\": \"q\"\n}\n";
    EXPECT_EQ(compact_member(text, "a").value_or(""), "{\"x\":[1,2.50,\"b c\\\" }\"],\"sha256\":1}");
    EXPECT_EQ(compact_member(text, "sha256").value_or(""), "\"q\"");
}

TEST(JsonText, FindsNoMemberElsewhere) {
    for (const char* text : {"", "{", "{}", "[\"a\"]", R"({"b": {"a": 1}})", R"({"b": "a"})", R"({"ab": 1})",
                             R"({"b": "\"a\":1"})", R"({"a" : )", R"("a":1)"})
        EXPECT_FALSE(compact_member(text, "a").has_value()) << text;
}

TEST(JsonText, KnowsHowDeepATextIs) {
    EXPECT_TRUE(is_shallow(std::string(kJsonDepth, '[') + std::string(kJsonDepth, ']')));
    EXPECT_FALSE(is_shallow(std::string(kJsonDepth + 1, '[')));
    EXPECT_TRUE(is_shallow('"' + std::string(1000, '[') + '"'));
}

}  // namespace
}  // namespace edge_cl
