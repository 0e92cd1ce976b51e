#include "preprocess.hpp"

#include <algorithm>
#include <string>
#include <utility>

#include "colour.hpp"

namespace edge_cl {
namespace {

constexpr int kMostSide = 1 << 15;

std::size_t row_bytes(const Frame& frame) {
    return static_cast<std::size_t>(frame.width) * pixel_bytes(frame.format);
}

Error refuse(const std::string& what, const std::string& mend) { return {Code::bad_frame, what, mend}; }

}  // namespace

Status check_frame(const Frame& frame) {
    const std::string size = std::to_string(frame.width) + " x " + std::to_string(frame.height);
    if (frame.data == nullptr) return refuse("A frame has no data.", "Point `data` at its pixels.");
    if (frame.width < 1 || frame.height < 1 || frame.width > kMostSide || frame.height > kMostSide)
        return refuse("A frame is " + size + " pixels.", "Pass 1 to 32768 pixels a side.");
    const int format = static_cast<int>(frame.format), range = static_cast<int>(frame.range);
    if (format < 0 || format > static_cast<int>(PixelFormat::yuyv))
        return refuse("Unknown pixel format " + std::to_string(format) + ".", "Pass one of PixelFormat.");
    if (range < 0 || range > static_cast<int>(YuvRange::bt601_full))
        return refuse("Unknown YUV range " + std::to_string(range) + ".", "Pass one of YuvRange.");
    const bool is_nv12 = frame.format == PixelFormat::nv12;
    if ((is_nv12 || frame.format == PixelFormat::yuyv) && frame.width % 2 != 0)
        return refuse("A YUV frame is " + size + " pixels.", "Pass an even width.");
    if (is_nv12 && frame.height % 2 != 0) return refuse("An NV12 frame is " + size + " pixels.", "Pass an even height.");
    const std::size_t row = row_bytes(frame), stride = frame.stride == 0 ? row : frame.stride;
    const std::size_t chroma_stride = frame.chroma_stride == 0 ? stride : frame.chroma_stride;
    if (stride < row || (is_nv12 && chroma_stride < row))
        return refuse("A frame's rows have " + std::to_string(row) + " bytes, but its stride is " +
                          std::to_string(std::min(stride, chroma_stride)) + ".",
                      "Pass the distance between rows in bytes.");
    if (stride > std::size_t{1} << 28 || chroma_stride > std::size_t{1} << 28)
        return refuse("A frame's stride is " + std::to_string(stride) + ".", "Pass at most 256 MiB.");
    const auto height = static_cast<std::size_t>(frame.height);
    std::size_t needed = stride * (height - 1) + row;
    if (is_nv12 && frame.chroma == nullptr) needed = stride * height + chroma_stride * (height / 2 - 1) + row;
    if (frame.size_bytes != 0 && frame.size_bytes < needed)
        return refuse("A frame of " + size + " pixels has " + std::to_string(frame.size_bytes) + " bytes, needs " +
                          std::to_string(needed) + ".",
                      "Pass its true size, stride and format.");
    return {};
}

void Preprocessor::plan(int width, int height) {
    if (width == width_ && height == height_) return;
    const double side = std::min(width, height) * spec_.crop_fraction;
    const double left = (width - side) / 2, top = (height - side) / 2;
    // Pillow takes the box in single precision.
    across_.plan(width, static_cast<float>(left), static_cast<float>(left + side), spec_.image_size,
                 spec_.interpolation);
    down_.plan(height, static_cast<float>(top), static_cast<float>(top + side), spec_.image_size, spec_.interpolation);
    width_ = width;
    height_ = height;
}

void Preprocessor::centre(const Frame& frame, std::uint8_t* out) {
    plan(frame.width, frame.height);
    if (is_down_first(frame.width, frame.height, spec_.image_size))
        down_first(frame, out);
    else
        across_first(frame, out);
    if (frame.format != PixelFormat::bgr8 && frame.format != PixelFormat::bgra8) return;
    const std::uint8_t* const end = out + spec_.image_size * spec_.image_size * 3;
    for (; out < end; out += 3) std::swap(out[0], out[2]);
}

template <class Row>
void Preprocessor::across(int height, Row row, std::uint8_t* out) {
    const Kernels& kernels = Kernels::best();
    constexpr int rows = static_cast<int>(kBlockRows);
    room_.resize((needed() + static_cast<std::size_t>(spec_.image_size) * 3) * kBlockRows + 8);
    for (int y = 0; y < height; y += rows, out += rows * spec_.image_size * 3) {
        const int count = std::min(rows, height - y);
        const std::uint8_t* block[kBlockRows];
        for (int r = 0; r < rows; ++r) block[r] = row(y + std::min(r, count - 1), r);
        kernels.across(across_.table(), block, static_cast<std::size_t>(count), room_.data(), out);
    }
}

void Preprocessor::across_first(const Frame& frame, std::uint8_t* out) {
    const std::size_t width = static_cast<std::size_t>(spec_.image_size) * 3;
    const int height = down_.last() - down_.first();
    rows_.resize(needed() * kBlockRows);
    first_.resize(static_cast<std::size_t>(height) * width);
    const auto row = [&](int y, int place) {
        return colour_row(frame, down_.first() + y, across_.first(), across_.last(),
                          rows_.data() + static_cast<std::size_t>(place) * needed());
    };
    across(height, row, first_.data());
    Kernels::best().down(down_.table(), first_.data(), width, width, out);
}

void Preprocessor::down_first(const Frame& frame, std::uint8_t* out) {
    const std::size_t width = needed();
    rows_.resize(static_cast<std::size_t>(down_.last() - down_.first()) * width);
    first_.resize(static_cast<std::size_t>(spec_.image_size) * width);
    std::uint8_t* room = rows_.data();
    for (int y = down_.first(); y < down_.last(); ++y, room += width) {
        const std::uint8_t* const row = colour_row(frame, y, across_.first(), across_.last(), room);
        if (row != room) std::copy(row, row + width, room);
    }
    Kernels::best().down(down_.table(), rows_.data(), width, width, first_.data());
    across(spec_.image_size, [&](int y, int) { return first_.data() + static_cast<std::size_t>(y) * width; }, out);
}

}  // namespace edge_cl
