#include "safetensors.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <string>

#include "golden.hpp"

namespace edge_cl {
namespace {

// Put a header and some bytes of data into a file's bytes.
Bytes file_of(const std::string& header, std::size_t data, std::uint64_t length) {
    std::string text;
    for (std::size_t i = 0; i < 8; ++i) text += static_cast<char>(static_cast<std::uint8_t>(length >> (8 * i)));
    text += header + std::string(data, '\0');
    return {text.begin(), text.end()};
}

Bytes file_of(const std::string& header, std::size_t data) { return file_of(header, data, header.size()); }

TEST(Safetensors, ReadsTensors) {
    Bytes bytes = file_of(
        R"({"__metadata__":{"a":"b"},"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
        R"("h":{"dtype":"F16","shape":[1,2],"data_offsets":[8,12]},"i":{"dtype":"I64","shape":[1],"data_offsets":[12,20]}})",
        20);
    const float values[] = {1.5F, -2.0F};
    std::memcpy(bytes.data() + bytes.size() - 20, values, sizeof values);
    bytes[bytes.size() - 11] = 0x3c;  // one, in half precision
    bytes[bytes.size() - 8] = 7;
    const Result<Tensors> tensors = Tensors::parse(bytes, "file");
    ASSERT_TRUE(tensors) << tensors.error().what;
    EXPECT_EQ(tensors->floats("x", {2}).value(), (std::vector<float>{1.5F, -2.0F}));
    EXPECT_EQ(tensors->floats("h", {1, 2}).value(), (std::vector<float>{1.0F, 0.0F}));
    EXPECT_EQ(tensors->integers("i", 1).value(), (std::vector<std::int64_t>{7}));
    EXPECT_EQ(tensors->size("h", 1), 2U);
    EXPECT_EQ(tensors->size("h", 2), 0U);
    EXPECT_FALSE(tensors->floats("x", {3}));
    EXPECT_FALSE(tensors->floats("x", {1, 2}));
    EXPECT_FALSE(tensors->floats("none", {1}));
    EXPECT_FALSE(tensors->floats("i", {1}));
    EXPECT_FALSE(tensors->integers("x", 2));
}

TEST(Safetensors, RefusesValuesThatAreNotFinite) {
    Bytes bytes = file_of(R"({"x":{"dtype":"F16","shape":[1],"data_offsets":[0,2]}})", 2);
    bytes.back() = 0x7c;  // infinity
    const Result<std::vector<float>> values = Tensors::parse(bytes, "file")->floats("x", {1});
    ASSERT_FALSE(values);
    EXPECT_NE(values.error().what.find("not finite"), std::string::npos);
}

// The rows of a matrix, found by what it is for: its products with unit vectors.
std::vector<float> rows_of(const Matrix& matrix, std::size_t count, std::size_t width) {
    std::vector<float> rows(count * width), unit(width), column(count);
    for (std::size_t i = 0; i < width; ++i) {
        unit[i] = 1;
        matrix.dots(unit.data(), width, 0, count, column.data());
        unit[i] = 0;
        for (std::size_t row = 0; row < count; ++row) rows[row * width + i] = column[row];
    }
    return rows;
}

TEST(Safetensors, ReadsMatricesOfFewBits) {
    Bytes bytes = file_of(
        R"({"x":{"dtype":"I8","shape":[2,2],"data_offsets":[0,4]},"x_scale":{"dtype":"F32","shape":[2,1],"data_offsets":[4,12]},)"
        R"("y":{"dtype":"U8","shape":[1,33],"data_offsets":[12,45]},"y_scale":{"dtype":"F32","shape":[1,2],"data_offsets":[45,53]},)"
        R"("z":{"dtype":"I8","shape":[1,1],"data_offsets":[53,54]},"w":{"dtype":"U8","shape":[1],"data_offsets":[54,55]}})",
        55);
    std::uint8_t* const data = bytes.data() + bytes.size() - 55;
    const std::uint8_t codes[] = {127, 0x81, 0, 0xff};  // 127, -127, 0, -1
    std::memcpy(data, codes, sizeof codes);
    const float scales[] = {0.5F, 3.0F}, others[] = {2.0F, 10.0F};
    std::memcpy(data + 4, scales, sizeof scales);
    std::memset(data + 12, 0x88, 33);  // zeros
    data[12] = 0xF1;                   // -7, 7
    data[12 + 32] = 0x8A;              // 2, and what fills up
    std::memcpy(data + 45, others, sizeof others);
    const Result<Tensors> tensors = Tensors::parse(bytes, "file");
    ASSERT_TRUE(tensors) << tensors.error().what;
    EXPECT_EQ(rows_of(tensors->matrix("x", 2, 2).value(), 2, 2), (std::vector<float>{63.5F, -63.5F, 0.0F, -3.0F}));
    EXPECT_EQ(rows_of(tensors->matrix("x_scale", 2, 1).value(), 2, 1), (std::vector<float>{0.5F, 3.0F}));
    const Result<Matrix> y = tensors->matrix("y", 1, 65);
    ASSERT_TRUE(y) << y.error().what;
    std::vector<float> expected(65);
    expected[0] = -14, expected[1] = 14, expected[64] = 20;
    EXPECT_EQ(rows_of(*y, 1, 65), expected);
    EXPECT_NE(tensors->matrix("x", 2, 3).error().what.find("x has 2 along axis 1, not 3"), std::string::npos);
    EXPECT_NE(tensors->matrix("y", 1, 64).error().what.find("y has 33 along axis 1, not 32"), std::string::npos);
    EXPECT_NE(tensors->matrix("z", 1, 1).error().what.find("z_scale is missing"), std::string::npos);
    EXPECT_FALSE(tensors->floats("w", {1}));
    EXPECT_FALSE(tensors->matrix("w", 1, 1));
    EXPECT_FALSE(tensors->floats("x", {2, 2}));

    const float infinite = std::numeric_limits<float>::infinity(), large = std::numeric_limits<float>::max();
    for (const float bad : {infinite, large}) {
        std::memcpy(data + 8, &bad, sizeof bad);
        data[3] = 2;
        const Result<Matrix> x = Tensors::parse(bytes, "file")->matrix("x", 2, 2);
        ASSERT_FALSE(x);
        EXPECT_NE(x.error().what.find("not finite"), std::string::npos);
    }
}

TEST(Safetensors, RefusesWhatIsNone) {
    const std::string good = R"({"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})";
    ASSERT_TRUE(Tensors::parse(file_of(good, 4), "file"));
    const std::pair<Bytes, const char*> bad[] = {
        {{}, "too short"},
        {{1, 2, 3}, "too short"},
        {file_of(good, 4, 1 << 20), "longer than the file"},
        {file_of(good, 4, ~std::uint64_t{0}), "longer than the file"},
        {file_of(good, 3), "past the end"},
        {file_of(good, 5), "belong to no tensor"},
        {file_of("[]", 0), "no JSON object"},
        {file_of("{", 0), "no JSON object"},
        {file_of(std::string(1000, '['), 0), "nested too deeply"},
        {file_of(R"({"x":1})", 0), "not described"},
        {file_of(R"({"x":{"dtype":"F32","shape":[1]}})", 4), "not described"},
        {file_of(R"({"x":{"dtype":3,"shape":[1],"data_offsets":[0,4]}})", 4), "wrong kind"},
        {file_of(R"({"x":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}})", 4), "wrong kind"},
        {file_of(R"({"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4.0]}})", 4), "wrong kind"},
        {file_of(R"({"x":{"dtype":"F31","shape":[1],"data_offsets":[0,4]}})", 4), "unknown dtype"},
        {file_of(R"({"x":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})", 4), "another size"},
        {file_of(R"({"x":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}})", 4), "another size"},
        {file_of(R"({"x":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}})", 0), "too large"},
        {file_of(R"({"x":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})", 8), "leave gaps"},
        {file_of(R"({"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"y":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 4),
         "overlap"},
    };
    for (const auto& [bytes, why] : bad) {
        const Result<Tensors> tensors = Tensors::parse(bytes, "file");
        ASSERT_FALSE(tensors) << why;
        EXPECT_NE(tensors.error().what.find(why), std::string::npos) << why << ": " << tensors.error().what;
    }
}

TEST(TensorFile, ReadsWhatTensorsReads) {
    const Result<Bytes> whole = read_file(test::golden("head.safetensors"), 1 << 20);
    Result<TensorFile> file = TensorFile::open(test::golden("head.safetensors"));
    ASSERT_TRUE(file) << file.error().what;
    EXPECT_EQ(file->floats("basis", {6, 48}).value(), Tensors::parse(*whole, "")->floats("basis", {6, 48}).value());
    EXPECT_FALSE(file->floats("basis", {6, 47}));
    EXPECT_FALSE(TensorFile::open(test::golden("no such file")));
}

}  // namespace
}  // namespace edge_cl
