#include "colour.hpp"

#include <algorithm>
#include <cstring>

namespace edge_cl {
namespace {

constexpr int kBits = 16;

// Coefficients times 2^16, and the value of Y that is black.
struct Conversion {
    int black, luma, red_v, green_u, green_v, blue_u;
};

// From the luma weights (Kr, Kb) and the ranges: luma 255/219, chroma 255/224 for 8-bit video, 1 for full range.
constexpr Conversion conversion(double kr, double kb, bool full) {
    const double luma = full ? 1.0 : 255.0 / 219.0, chroma = full ? 1.0 : 255.0 / 224.0, kg = 1 - kr - kb;
    constexpr double one = 1 << kBits;
    return {full ? 0 : 16,
            static_cast<int>(luma * one + 0.5),
            static_cast<int>(2 * (1 - kr) * chroma * one + 0.5),
            static_cast<int>(2 * (1 - kb) * kb / kg * chroma * one + 0.5),
            static_cast<int>(2 * (1 - kr) * kr / kg * chroma * one + 0.5),
            static_cast<int>(2 * (1 - kb) * chroma * one + 0.5)};
}

constexpr Conversion kConversions[] = {conversion(0.299, 0.114, false), conversion(0.2126, 0.0722, false),
                                       conversion(0.299, 0.114, true)};

std::uint8_t clip(int value) { return static_cast<std::uint8_t>(std::clamp(value >> kBits, 0, 255)); }

void write_pixel(const Conversion& c, int y, int u, int v, std::uint8_t* out) {
    const int luma = (y - c.black) * c.luma + (1 << (kBits - 1));
    out[0] = clip(luma + c.red_v * (v - 128));
    out[1] = clip(luma - c.green_u * (u - 128) - c.green_v * (v - 128));
    out[2] = clip(luma + c.blue_u * (u - 128));
}

}  // namespace

std::size_t pixel_bytes(PixelFormat format) {
    switch (format) {
        case PixelFormat::rgb8:
        case PixelFormat::bgr8: return 3;
        case PixelFormat::rgba8:
        case PixelFormat::bgra8: return 4;
        case PixelFormat::yuyv: return 2;
        case PixelFormat::grey8:
        case PixelFormat::nv12: break;
    }
    return 1;
}

const std::uint8_t* colour_row(const Frame& frame, int y, int first, int last, std::uint8_t* room) {
    const std::size_t bytes = pixel_bytes(frame.format), width = static_cast<std::size_t>(frame.width);
    const std::size_t stride = frame.stride != 0 ? frame.stride : width * bytes, row = static_cast<std::size_t>(y);
    const std::uint8_t* const pixels = frame.data + row * stride;
    std::uint8_t* out = room;
    switch (frame.format) {
        case PixelFormat::rgb8:
        case PixelFormat::bgr8: return pixels + 3 * first;
        case PixelFormat::rgba8:
        case PixelFormat::bgra8:
            for (int x = first; x < last; ++x, out += 3) std::memcpy(out, pixels + 4 * x, 3);
            break;
        case PixelFormat::grey8:
            for (int x = first; x < last; ++x, out += 3) std::memset(out, pixels[x], 3);
            break;
        case PixelFormat::yuyv: {
            const Conversion& c = kConversions[static_cast<int>(frame.range)];
            for (int x = first; x < last; ++x, out += 3) {
                const int pair = 2 * (x & ~1);
                write_pixel(c, pixels[2 * x], pixels[pair + 1], pixels[pair + 3], out);
            }
            break;
        }
        case PixelFormat::nv12: {
            const Conversion& c = kConversions[static_cast<int>(frame.range)];
            const std::size_t chroma_stride = frame.chroma_stride != 0 ? frame.chroma_stride : stride;
            const std::uint8_t* const plane = frame.chroma != nullptr
                                                  ? frame.chroma
                                                  : frame.data + stride * static_cast<std::size_t>(frame.height);
            const std::uint8_t* const chroma = plane + (row / 2) * chroma_stride;
            for (int x = first; x < last; ++x, out += 3)
                write_pixel(c, pixels[x], chroma[x & ~1], chroma[(x & ~1) + 1], out);
            break;
        }
    }
    return room;
}

}  // namespace edge_cl
