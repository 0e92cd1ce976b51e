// Pixel formats of cameras, and YUV to RGB.
#pragma once

#include <cstddef>
#include <cstdint>

#include "edge_cl/frame.hpp"

namespace edge_cl {

/// Bytes of a pixel in its row; of NV12, in the plane of Y.
std::size_t pixel_bytes(PixelFormat format);

/// Return the pixels [first, last) of one row of a frame, three bytes each: where they lie in the frame if it has such,
/// else written to `room`. Blue comes first where it does in the frame.
///
/// YUV becomes RGB by R = a (Y - y0) + b (V - 128) and so on (ITU-R BT.601 and BT.709), rounded to nearest; each pixel
/// takes the nearest chroma sample.
const std::uint8_t* colour_row(const Frame& frame, int y, int first, int last, std::uint8_t* room);

}  // namespace edge_cl
