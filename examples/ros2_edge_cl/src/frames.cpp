#include "frames.hpp"

#include <limits>
#include <map>

namespace {

// Names of sensor_msgs/image_encodings.hpp.
const std::map<std::string, edge_cl::PixelFormat> kFormats{
    {"rgb8", edge_cl::PixelFormat::rgb8},         {"bgr8", edge_cl::PixelFormat::bgr8},
    {"rgba8", edge_cl::PixelFormat::rgba8},       {"bgra8", edge_cl::PixelFormat::bgra8},
    {"mono8", edge_cl::PixelFormat::grey8},       {"8UC1", edge_cl::PixelFormat::grey8},
    {"8UC3", edge_cl::PixelFormat::bgr8},         {"yuv422_yuy2", edge_cl::PixelFormat::yuyv},
    {"nv12", edge_cl::PixelFormat::nv12},
};

}  // namespace

std::optional<edge_cl::Frame> frame_of(const std::string& encoding, std::uint32_t width, std::uint32_t height,
                                       std::uint32_t step, const std::uint8_t* data, std::size_t size_bytes) {
    const auto found = kFormats.find(encoding);
    constexpr auto most = static_cast<std::uint32_t>(std::numeric_limits<int>::max());
    if (found == kFormats.end() || width > most || height > most) return std::nullopt;
    edge_cl::Frame frame;
    frame.data = data;
    frame.size_bytes = size_bytes;
    frame.width = static_cast<int>(width);
    frame.height = static_cast<int>(height);
    frame.stride = step;
    frame.format = found->second;
    return frame;
}

std::string known_encodings() {
    std::string names;
    for (const auto& [name, format] : kFormats) names += (names.empty() ? "" : ", ") + name;
    return names;
}
