#include "preprocess.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <memory>

#include "colour.hpp"
#include "golden.hpp"

namespace edge_cl {
namespace {

Frame frame_of(const std::uint8_t* data, std::size_t width, std::size_t height, PixelFormat format, std::size_t stride = 0) {
    Frame frame;
    frame.data = data;
    frame.width = static_cast<int>(width);
    frame.height = static_cast<int>(height);
    frame.format = format;
    frame.stride = stride;
    return frame;
}

std::vector<std::uint8_t> centre(const Preprocess& spec, const Frame& frame) {
    EXPECT_TRUE(check_frame(frame));
    std::vector<std::uint8_t> out(static_cast<std::size_t>(spec.image_size * spec.image_size * 3));
    Preprocessor(spec).centre(frame, out.data());
    return out;
}

Preprocess spec_of(const test::Golden& golden, const std::string& name) {
    const auto numbers = golden.get<float>(name + "/spec");
    Preprocess spec;
    spec.image_size = static_cast<int>(numbers[0]);
    spec.crop_fraction = std::round(static_cast<double>(numbers[1]) * 1000) / 1000;
    spec.interpolation = numbers[2] != 0 ? Interpolation::bicubic : Interpolation::bilinear;
    return spec;
}

std::vector<std::string> cases(const test::Golden& golden) {
    std::vector<std::string> names;
    for (const auto& [name, place] : golden.places())
        if (name.size() > 3 && name.substr(name.size() - 3) == "/in") names.push_back(name.substr(0, name.size() - 3));
    return names;
}

TEST(Preprocess, ResamplesAsPillowDoesToTheLastBit) {
    const test::Golden golden("resampling");
    ASSERT_GE(cases(golden).size(), 10U);
    for (const std::string& name : cases(golden)) {
        const auto in = golden.get<std::uint8_t>(name + "/in");
        const std::size_t height = golden.size(name + "/in", 0), width = golden.size(name + "/in", 1);
        EXPECT_EQ(centre(spec_of(golden, name), frame_of(in.data(), width, height, PixelFormat::rgb8)),
                  golden.get<std::uint8_t>(name + "/out"))
            << name;
    }
}

// Every format with three bytes of colour gives what RGB gives, also with gaps between the rows, in memory of exactly
// the size needed, which AddressSanitizer watches.
TEST(Preprocess, ReadsEveryOrderOfBytes) {
    const test::Golden golden("resampling");
    const struct {
        PixelFormat format;
        std::size_t step, red, blue;
    } formats[] = {{PixelFormat::rgb8, 3, 0, 2},
                   {PixelFormat::bgr8, 3, 2, 0},
                   {PixelFormat::rgba8, 4, 0, 2},
                   {PixelFormat::bgra8, 4, 2, 0}};
    for (const std::string& name : cases(golden)) {
        const auto in = golden.get<std::uint8_t>(name + "/in");
        const std::size_t height = golden.size(name + "/in", 0), width = golden.size(name + "/in", 1);
        for (const auto& [format, step, red, blue] : formats)
            for (const std::size_t gap : {0, 5}) {
                const std::size_t stride = width * step + gap, size = stride * (height - 1) + width * step;
                const std::unique_ptr<std::uint8_t[]> data(new std::uint8_t[size]());
                for (std::size_t y = 0; y < height; ++y)
                    for (std::size_t x = 0; x < width; ++x) {
                        std::uint8_t* pixel = data.get() + y * stride + x * step;
                        const std::uint8_t* from = in.data() + (y * width + x) * 3;
                        if (step == 4) pixel[3] = 99;
                        pixel[red] = from[0];
                        pixel[1] = from[1];
                        pixel[blue] = from[2];
                    }
                Frame frame = frame_of(data.get(), width, height, format, stride);
                frame.size_bytes = size;
                EXPECT_EQ(centre(spec_of(golden, name), frame), golden.get<std::uint8_t>(name + "/out"))
                    << name << " " << static_cast<int>(format) << " " << gap;
            }
    }
}

TEST(Preprocess, ReadsGreyAsThreeEqualColours) {
    const test::Golden golden("resampling");
    const auto in = golden.get<std::uint8_t>("smaller/in");
    const Preprocess spec = spec_of(golden, "smaller");
    std::vector<std::uint8_t> grey(40 * 30), rgb;
    for (std::size_t i = 0; i < grey.size(); ++i) {
        grey[i] = in[3 * i];
        rgb.insert(rgb.end(), 3, in[3 * i]);
    }
    EXPECT_EQ(centre(spec, frame_of(grey.data(), 40, 30, PixelFormat::grey8)),
              centre(spec, frame_of(rgb.data(), 40, 30, PixelFormat::rgb8)));
}

// The standards' formula in double precision.
void yuv_to_rgb(double y, double u, double v, YuvRange range, std::uint8_t* out) {
    const double kr = range == YuvRange::bt709 ? 0.2126 : 0.299, kb = range == YuvRange::bt709 ? 0.0722 : 0.114;
    const bool full = range == YuvRange::bt601_full;
    const double luma = full ? y / 255 : (y - 16) / 219, pb = full ? (u - 128) / 255 : (u - 128) / 224,
                 pr = full ? (v - 128) / 255 : (v - 128) / 224;
    const double r = luma + 2 * (1 - kr) * pr, b = luma + 2 * (1 - kb) * pb, g = (luma - kr * r - kb * b) / (1 - kr - kb);
    const double channels[] = {r, g, b};
    for (std::size_t c = 0; c < 3; ++c)
        out[c] = static_cast<std::uint8_t>(std::lround(std::min(std::max(channels[c] * 255, 0.0), 255.0)));
}

TEST(Colour, FollowsTheStandards) {
    constexpr std::size_t width = 64, height = 64;
    std::vector<std::uint8_t> yuyv(width * height * 2), nv12(width * height * 3 / 2);
    std::uint32_t state = 1;
    const auto next = [&state] { return static_cast<std::uint8_t>((state = state * 1664525 + 1013904223) >> 24); };
    for (auto& byte : yuyv) byte = next();
    for (auto& byte : nv12) byte = next();
    for (const YuvRange range : {YuvRange::bt601, YuvRange::bt709, YuvRange::bt601_full})
        for (const PixelFormat format : {PixelFormat::yuyv, PixelFormat::nv12}) {
            Frame frame = frame_of(format == PixelFormat::yuyv ? yuyv.data() : nv12.data(), width, height, format);
            frame.range = range;
            for (std::size_t y = 0; y < height; ++y) {
                std::uint8_t row[3 * width] = {};
                colour_row(frame, static_cast<int>(y), 0, width, row);
                for (std::size_t x = 0; x < width; ++x) {
                    std::uint8_t wanted[3];
                    if (format == PixelFormat::yuyv) {
                        const std::uint8_t* pair = yuyv.data() + y * width * 2 + x / 2 * 4;
                        yuv_to_rgb(pair[x % 2 * 2], pair[1], pair[3], range, wanted);
                    } else {
                        const std::uint8_t* pair = nv12.data() + width * height + y / 2 * width + x / 2 * 2;
                        yuv_to_rgb(nv12[y * width + x], pair[0], pair[1], range, wanted);
                    }
                    for (std::size_t c = 0; c < 3; ++c) ASSERT_NEAR(row[3 * x + c], wanted[c], 1);
                }
            }
        }
}

TEST(Preprocess, ReadsYuvFrames) {
    constexpr std::size_t width = 30, height = 20;
    std::vector<std::uint8_t> yuyv(width * height * 2), nv12(width * height * 3 / 2, 0), plane(width * height / 2), rgb;
    for (std::size_t i = 0; i < yuyv.size(); ++i) yuyv[i] = static_cast<std::uint8_t>(i * 7);
    for (std::size_t y = 0; y < height; ++y)
        for (std::size_t x = 0; x < width; ++x) nv12[y * width + x] = yuyv[(y * width + x) * 2];
    for (std::size_t i = 0; i < plane.size(); ++i) plane[i] = static_cast<std::uint8_t>(i * 3);
    std::copy(plane.begin(), plane.end(), nv12.begin() + width * height);
    Preprocess spec;
    spec.image_size = 16;
    Frame together = frame_of(nv12.data(), width, height, PixelFormat::nv12), apart = together;
    together.size_bytes = nv12.size();
    apart.chroma = plane.data();
    apart.chroma_stride = width;
    apart.size_bytes = width * height;
    EXPECT_EQ(centre(spec, together), centre(spec, apart));
    for (std::size_t y = 0; y < height; ++y) {
        std::uint8_t row[3 * width];
        colour_row(frame_of(yuyv.data(), width, height, PixelFormat::yuyv), static_cast<int>(y), 0, width, row);
        rgb.insert(rgb.end(), row, row + 3 * width);
    }
    EXPECT_EQ(centre(spec, frame_of(yuyv.data(), width, height, PixelFormat::yuyv)),
              centre(spec, frame_of(rgb.data(), width, height, PixelFormat::rgb8)));
}

TEST(Preprocess, KeepsItsTablesOnlyForTheSameSize) {
    const test::Golden golden("resampling");
    Preprocess spec = spec_of(golden, "smaller");
    Preprocessor preprocessor(spec);
    for (const char* name : {"smaller", "upright", "smaller"}) {
        const auto in = golden.get<std::uint8_t>(std::string(name) + "/in");
        const Frame frame = frame_of(in.data(), golden.size(std::string(name) + "/in", 1),
                                     golden.size(std::string(name) + "/in", 0), PixelFormat::rgb8);
        std::vector<std::uint8_t> out(16 * 16 * 3);
        preprocessor.centre(frame, out.data());
        EXPECT_EQ(out, centre(spec, frame));
    }
}

TEST(Frame, IsRefusedWhereItCannotBe) {
    const std::uint8_t pixels[64] = {};
    const auto changed = [&](auto change) {
        Frame frame = frame_of(pixels, 4, 4, PixelFormat::rgb8);
        frame.size_bytes = 48;
        change(frame);
        return check_frame(frame);
    };
    EXPECT_TRUE(changed([](Frame&) {}));
    const std::pair<void (*)(Frame&), const char*> bad[] = {
        {[](Frame& f) { f.data = nullptr; }, "no data"},
        {[](Frame& f) { f.width = 0; }, "0 x 4"},
        {[](Frame& f) { f.height = -1; }, "4 x -1"},
        {[](Frame& f) { f.width = 1 << 20; }, "1048576 x 4"},
        {[](Frame& f) { f.stride = 11; }, "stride is 11"},
        {[](Frame& f) { f.stride = ~std::size_t{0}; }, "stride"},
        {[](Frame& f) { f.size_bytes = 47; }, "has 47 bytes, needs 48"},
        {[](Frame& f) { f.stride = 13; }, "needs 51"},
        {[](Frame& f) { f.format = static_cast<PixelFormat>(7); }, "Unknown pixel format 7"},
        {[](Frame& f) { f.range = static_cast<YuvRange>(-1); }, "Unknown YUV range -1"},
        {[](Frame& f) { f.width = 3, f.format = PixelFormat::yuyv; }, "even width"},
        {[](Frame& f) { f.height = 3, f.format = PixelFormat::nv12; }, "even height"},
        {[](Frame& f) { f.format = PixelFormat::nv12, f.size_bytes = 23; }, "needs 24"},
    };
    for (const auto& [change, why] : bad) {
        const Status status = changed(change);
        ASSERT_FALSE(status) << why;
        EXPECT_EQ(status.error().code, Code::bad_frame);
        EXPECT_NE(status.error().message().find(why), std::string::npos) << status.error().message();
    }
}

}  // namespace
}  // namespace edge_cl
