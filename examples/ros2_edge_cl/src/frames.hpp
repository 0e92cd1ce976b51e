// From an image message's fields to a frame; free of ROS, so that it is tested without it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "edge_cl/frame.hpp"

/// Return a view of an image as sensor_msgs/Image describes it; nothing for an encoding that cannot be read.
///
/// @param step bytes of a row; of NV12, of the plane of Y.
std::optional<edge_cl::Frame> frame_of(const std::string& encoding, std::uint32_t width, std::uint32_t height,
                                       std::uint32_t step, const std::uint8_t* data, std::size_t size_bytes);

/// Return the encodings that can be read, for a message to the user.
std::string known_encodings();
