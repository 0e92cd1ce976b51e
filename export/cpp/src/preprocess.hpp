// From a frame to network input: the centred square, resampled exactly as Pillow does it.
#pragma once

#include <cstdint>
#include <vector>

#include "edge_cl/frame.hpp"
#include "edge_cl/result.hpp"
#include "resampling.hpp"

namespace edge_cl {

/// How a frame becomes pixels.
struct Preprocess {
    int image_size = 0;  ///< side of the square input, pixels
    Interpolation interpolation = Interpolation::bicubic;
    double crop_fraction = 1;  ///< side of the square that is kept, as a fraction of the frame's shorter side
};

/// Return what is wrong with a frame: nothing if it can be read.
Status check_frame(const Frame& frame);

/// Turns frames into network input; keeps its memory and its tables from one frame to the next.
class Preprocessor {
public:
    explicit Preprocessor(const Preprocess& spec) : spec_(spec) {}

    /// Write the centred square of a frame that was checked: (S, S, 3) uint8, RGB.
    void centre(const Frame& frame, std::uint8_t* out);

private:
    void plan(int width, int height);
    std::size_t needed() const { return static_cast<std::size_t>(across_.last() - across_.first()) * 3; }  // of a row
    /// Resample `height` rows across; `row(y, r)` gives the needed part of one of them, the r-th of its block.
    template <class Row>
    void across(int height, Row row, std::uint8_t* out);
    void across_first(const Frame& frame, std::uint8_t* out);
    void down_first(const Frame& frame, std::uint8_t* out);

    Preprocess spec_;
    int width_ = 0, height_ = 0;  // that the tables are for
    Taps across_, down_;
    std::vector<std::uint8_t> rows_;   // of the frame, three bytes a pixel
    std::vector<std::uint8_t> room_;   // of the kernel that resamples across
    std::vector<std::uint8_t> first_;  // what the first pass makes
};

}  // namespace edge_cl
