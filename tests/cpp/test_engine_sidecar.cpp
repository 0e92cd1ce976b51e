#include "engine_sidecar.hpp"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "sha256.hpp"

namespace edge_cl {
namespace {

using Json = nlohmann::json;

Json sidecar() {
    return {{"format", 1},
            {"file", "prefix-0011223344556677.engine"},
            {"engine", {{"sha256", std::string(64, 'a')}, {"size", 12}}},
            {"key",
             {{"graph_sha256", "g"},
              {"weights_sha256", "w"},
              {"overrides_sha256", ""},
              {"profile", {1, 1, 16}},
              {"platform",
               {{"tensorrt", "10.3.0"}, {"cuda", "12.6"}, {"gpu", "Orin"}, {"compute_capability", "8.7"}}}}}};
}

std::string signed_text(const Json& value) { return Json{{"engine", value}, {"sha256", sha256(value.dump())}}.dump(2); }

TEST(EngineSidecar, IsRead) {
    const Result<EngineSidecar> found = parse_sidecar(signed_text(sidecar()));
    ASSERT_TRUE(found) << found.error().what;
    EXPECT_EQ(found->file.name, "prefix-0011223344556677.engine");
    EXPECT_EQ(found->file.size, 12U);
    EXPECT_EQ(found->platform.tensorrt, "10.3.0");
    EXPECT_EQ(found->platform.gpu, "Orin");
    EXPECT_EQ(found->graph_sha256, "g");
    EXPECT_EQ(found->max_batch, 16U);
}

TEST(EngineSidecar, IsRefusedWhereItCannotBeTrusted) {
    const std::pair<void (*)(Json&), const char*> bad[] = {
        {[](Json& s) { s["format"] = 2; }, "another version"},
        {[](Json& s) { s["file"] = "../prefix.engine"; }, "elsewhere"},
        {[](Json& s) { s["file"] = ""; }, "elsewhere"},
        {[](Json& s) { s["file"] = ".."; }, "elsewhere"},
        {[](Json& s) { s.erase("key"); }, "key"},
        {[](Json& s) { s["key"]["profile"] = {1}; }, ""},
        {[](Json& s) { s["key"].erase("platform"); }, "platform"},
        {[](Json& s) { s["key"]["platform"].erase("gpu"); }, "gpu"},
        {[](Json& s) { s["key"]["platform"]["cuda"] = 12; }, "string"},
        {[](Json& s) { s["engine"] = 1; }, ""},
    };
    for (const auto& [change, why] : bad) {
        Json value = sidecar();
        change(value);
        const Result<EngineSidecar> found = parse_sidecar(signed_text(value));
        ASSERT_FALSE(found) << why;
        EXPECT_NE(found.error().what.find(why), std::string::npos) << found.error().what;
    }
    std::string altered = signed_text(sidecar());
    altered.replace(altered.find("\"g\""), 3, "\"h\"");
    EXPECT_FALSE(parse_sidecar(altered));
    for (const char* text : {"", "[]", "{}", "{\"engine\": 1}"}) EXPECT_FALSE(parse_sidecar(text)) << text;
}

TEST(EngineSidecar, IsOfAnotherKeyWhereFilesOrPlatformDiffer) {
    const std::pair<void (*)(EngineSidecar&), const char*> cases[] = {
        {[](EngineSidecar&) {}, ""},
        {[](EngineSidecar& s) { s.platform.tensorrt = "10.3.0.26"; }, ""},  // the build number, which Python may know
        {[](EngineSidecar& s) { s.graph_sha256 = "h"; }, "was made of other graphs or weights"},
        {[](EngineSidecar& s) { s.weights_sha256 = ""; }, "was made of other graphs or weights"},
        {[](EngineSidecar& s) { s.overrides_sha256 = "o"; }, "was made of other graphs or weights"},
        {[](EngineSidecar& s) { s.platform.tensorrt = "10.3"; }, "was made elsewhere: TensorRT was 10.3, is 10.3.0"},
        {[](EngineSidecar& s) { s.platform.tensorrt = "10.3.01"; }, "was made elsewhere: TensorRT was 10.3.01, is 10.3.0"},
        {[](EngineSidecar& s) { s.platform.cuda = "12.4"; }, "was made elsewhere: CUDA was 12.4, is 12.6"},
        {[](EngineSidecar& s) { s.platform.gpu = "Thor", s.platform.compute_capability = "11.0"; },
         "was made elsewhere: the GPU was Thor, is Orin, the compute capability was 11.0, is 8.7"},
    };
    const EngineSidecar wanted = parse_sidecar(signed_text(sidecar())).value();
    for (const auto& [change, why] : cases) {
        EngineSidecar found = wanted;
        change(found);
        EXPECT_EQ(key_fault(found, wanted), why);
    }
}

TEST(EngineSidecar, DigestIsThatOfPython) {
    EXPECT_EQ(overrides_digest({}, 2, false), "");
    // sha256("a float32 (1, 2)\n" + the bytes of 1.0 and 2.0) and the same as float16, by Python's hashlib.
    EXPECT_EQ(overrides_digest({{"a", {1.0F, 2.0F}}}, 1, false), "043764be6db36a1d54ac2c27cbaea5ab84461beeaf4f06dc8b2777ac7e6500b0");
    EXPECT_EQ(overrides_digest({{"a", {1.0F, 2.0F}}}, 1, true), "dcdae6c279ff6986c2df17fec3a27ff89f2fbb6d10557658d81789569b6a6bd0");
}

}  // namespace
}  // namespace edge_cl
