// Pixel formats of cameras, and YUV to RGB.
#pragma once

#include <cstddef>
#include <cstdint>

#include "edge_cl/frame.hpp"

namespace edge_cl {

/// Bytes of a pixel in its row; of NV12, in the plane of Y.
std::size_t pixel_bytes(PixelFormat format);

/// Write the pixels [first, last) of one row of a frame as red, green, blue and a byte that means nothing; pixel x is
/// written at out + 4 x.
///
/// YUV becomes RGB by R = a (Y - y0) + b (V - 128) and so on (ITU-R BT.601 and BT.709), rounded to nearest; each pixel
/// takes the nearest chroma sample.
void rgbx_row(const Frame& frame, int y, int first, int last, std::uint8_t* out);

}  // namespace edge_cl
