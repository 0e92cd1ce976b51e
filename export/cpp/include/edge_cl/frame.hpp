// A picture as a camera driver hands it over: a view, nothing is copied.
#pragma once

#include <cstddef>
#include <cstdint>

namespace edge_cl {

/// How pixels lie in memory; the numbers are those of the C API and never change.
enum class PixelFormat : int {
    rgb8 = 0,
    bgr8 = 1,
    rgba8 = 2,  ///< the fourth byte is left out
    bgra8 = 3,  ///< the fourth byte is left out
    grey8 = 4,
    nv12 = 5,  ///< a plane of Y, then one of U and V in turn at half the resolution
    yuyv = 6,  ///< Y U Y V for every two pixels
};

/// How YUV becomes RGB; the numbers are those of the C API and never change.
enum class YuvRange : int {
    bt601 = 0,       ///< Y 16-235: most cameras
    bt709 = 1,       ///< Y 16-235: high-definition video
    bt601_full = 2,  ///< Y 0-255: as in JPEG
};

/// One frame of a camera.
struct Frame {
    const std::uint8_t* data = nullptr;
    int width = 0;   ///< pixels
    int height = 0;  ///< pixels
    PixelFormat format = PixelFormat::rgb8;
    std::size_t stride = 0;      ///< bytes from one row to the next; 0: rows follow each other without a gap
    std::size_t size_bytes = 0;  ///< of the memory at `data`, which is checked to hold the frame; 0: not known
    const std::uint8_t* chroma = nullptr;  ///< NV12's second plane; nullptr: it follows the first
    std::size_t chroma_stride = 0;         ///< of that plane; 0: as `stride`
    YuvRange range = YuvRange::bt601;
};

}  // namespace edge_cl
