#include "camera.hpp"

#include <fcntl.h>
#include <linux/videodev2.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace {

constexpr unsigned kBuffers = 4;

bool request(int device, unsigned long what, void* argument) {
    int result = 0;
    do result = ::ioctl(device, what, argument);
    while (result < 0 && errno == EINTR);
    return result == 0;
}

v4l2_buffer buffer_of(unsigned index) {
    v4l2_buffer buffer{};
    buffer.type = V4L2_BUF_TYPE_VIDEO_CAPTURE;
    buffer.memory = V4L2_MEMORY_MMAP;
    buffer.index = index;
    return buffer;
}

}  // namespace

Camera::~Camera() {
    for (const Buffer& buffer : buffers_) ::munmap(buffer.data, buffer.size);
    if (device_ >= 0) ::close(device_);
}

bool Camera::open(const std::string& path, int width, int height, std::string& fault) {
    device_ = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
    if (device_ < 0) {
        fault = path + " cannot be opened: " + std::strerror(errno) + ".";
        return false;
    }
    if (!choose_format(width, height)) {
        fault = path + " gives neither NV12 nor YUYV.";
        return false;
    }
    int type = V4L2_BUF_TYPE_VIDEO_CAPTURE;
    if (!map_buffers() || !request(device_, VIDIOC_STREAMON, &type)) {
        fault = path + " does not start: " + std::strerror(errno) + ".";
        return false;
    }
    return true;
}

bool Camera::choose_format(int width, int height) {
    const struct {
        unsigned code;
        edge_cl::PixelFormat format;
    } choices[] = {{V4L2_PIX_FMT_NV12, edge_cl::PixelFormat::nv12}, {V4L2_PIX_FMT_YUYV, edge_cl::PixelFormat::yuyv}};
    for (const auto& choice : choices) {
        v4l2_format format{};
        format.type = V4L2_BUF_TYPE_VIDEO_CAPTURE;
        format.fmt.pix.width = static_cast<unsigned>(width);
        format.fmt.pix.height = static_cast<unsigned>(height);
        format.fmt.pix.pixelformat = choice.code;
        if (!request(device_, VIDIOC_S_FMT, &format) || format.fmt.pix.pixelformat != choice.code) continue;
        frame_.width = static_cast<int>(format.fmt.pix.width);
        frame_.height = static_cast<int>(format.fmt.pix.height);
        frame_.stride = format.fmt.pix.bytesperline;
        frame_.format = choice.format;
        return true;
    }
    return false;
}

bool Camera::map_buffers() {
    v4l2_requestbuffers wanted{};
    wanted.count = kBuffers;
    wanted.type = V4L2_BUF_TYPE_VIDEO_CAPTURE;
    wanted.memory = V4L2_MEMORY_MMAP;
    if (!request(device_, VIDIOC_REQBUFS, &wanted) || wanted.count == 0) return false;
    for (unsigned i = 0; i < wanted.count; ++i) {
        v4l2_buffer buffer = buffer_of(i);
        if (!request(device_, VIDIOC_QUERYBUF, &buffer)) return false;
        void* const data = ::mmap(nullptr, buffer.length, PROT_READ | PROT_WRITE, MAP_SHARED, device_,
                                  static_cast<off_t>(buffer.m.offset));
        if (data == MAP_FAILED) return false;
        buffers_.push_back({data, buffer.length});
        if (!request(device_, VIDIOC_QBUF, &buffer)) return false;
    }
    return true;
}

bool Camera::next(edge_cl::Frame& frame) {
    if (lent_ >= 0) {
        v4l2_buffer used = buffer_of(static_cast<unsigned>(lent_));
        lent_ = -1;
        if (!request(device_, VIDIOC_QBUF, &used)) return false;
    }
    pollfd waiting{device_, POLLIN, 0};
    if (::poll(&waiting, 1, 5000) <= 0) return false;
    v4l2_buffer buffer = buffer_of(0);
    if (!request(device_, VIDIOC_DQBUF, &buffer) || buffer.index >= buffers_.size()) return false;
    lent_ = static_cast<int>(buffer.index);
    frame = frame_;
    frame.data = static_cast<const std::uint8_t*>(buffers_[buffer.index].data);
    frame.size_bytes = buffers_[buffer.index].size;
    return true;
}
