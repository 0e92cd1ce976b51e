#include <gtest/gtest.h>

#include "frames.hpp"
#include "preprocess.hpp"

namespace {

TEST(Ros2Frames, AreViewsOfMessages) {
    const std::uint8_t data[48] = {};
    const auto frame = frame_of("bgr8", 4, 3, 16, data, sizeof data);
    ASSERT_TRUE(frame.has_value());
    EXPECT_EQ(frame->format, edge_cl::PixelFormat::bgr8);
    EXPECT_EQ(frame->stride, 16U);
    EXPECT_TRUE(edge_cl::check_frame(*frame));
    EXPECT_FALSE(edge_cl::check_frame(*frame_of("bgr8", 4, 4, 16, data, 47)));
    EXPECT_EQ(frame_of("mono8", 4, 3, 4, data, sizeof data)->format, edge_cl::PixelFormat::grey8);
    EXPECT_EQ(frame_of("yuv422_yuy2", 4, 3, 8, data, sizeof data)->format, edge_cl::PixelFormat::yuyv);
}

TEST(Ros2Frames, RefuseWhatCannotBeRead) {
    const std::uint8_t data[48] = {};
    EXPECT_FALSE(frame_of("16UC1", 4, 3, 8, data, sizeof data).has_value());
    EXPECT_FALSE(frame_of("rgb8", 0x80000000U, 3, 8, data, sizeof data).has_value());
    EXPECT_NE(known_encodings().find("rgb8"), std::string::npos);
}

}  // namespace
