// Frames of a V4L2 camera, in the camera's own memory.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "edge_cl/frame.hpp"

/// A camera such as /dev/video0; it gives NV12 or YUYV.
class Camera {
public:
    Camera() = default;
    Camera(const Camera&) = delete;
    Camera& operator=(const Camera&) = delete;
    ~Camera();

    /// Open a camera at about this size; on an error `fault` says why.
    bool open(const std::string& path, int width, int height, std::string& fault);

    /// Wait for a frame; it is valid until the next call. False: the camera gives none any more.
    bool next(edge_cl::Frame& frame);

private:
    struct Buffer {
        void* data;
        std::size_t size;
    };
    bool choose_format(int width, int height);
    bool map_buffers();

    int device_ = -1;
    int lent_ = -1;  // buffer of the last frame
    edge_cl::Frame frame_;
    std::vector<Buffer> buffers_;
};
