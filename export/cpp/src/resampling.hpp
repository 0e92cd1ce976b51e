// Antialiased resampling of 8-bit pictures: the arithmetic of Pillow, bit for bit.
//
// Pillow resamples along one axis, rounds to 8 bits, then resamples along the other. Each output pixel is a weighted
// sum of the input pixels under a filter that is as many input pixels wide as the scale asks for; the weights are whole
// numbers, 2^22 times their value.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels.hpp"

namespace edge_cl {

enum class Interpolation { bilinear, bicubic };

/// The weights of every output position along one axis.
class Taps {
public:
    /// Compute them for `in` pixels, of which [from, to) becomes `out` pixels.
    void plan(int in, float from, float to, int out, Interpolation interpolation);

    int out() const { return out_; }
    int first() const { return first_; }  ///< first input position that any output needs
    int last() const { return last_; }    ///< one past the last

    /// The weights as plain pointers.
    TapTable table() const { return {weights_.data(), begins_.data(), counts_.data(), out_, span_, first_, last_}; }

private:
    int out_ = 0, first_ = 0, last_ = 0, span_ = 0;
    std::vector<std::int32_t> weights_;
    std::vector<int> begins_, counts_;
    std::vector<double> exact_;
};

/// Whether Pillow resamples down before it resamples across: since its version 13, where the height shrinks by more than
/// twice what the width does. Earlier ones always resample across first; the results differ by rounding.
bool is_down_first(int width, int height, int out);

}  // namespace edge_cl
