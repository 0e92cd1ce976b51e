#include "resampling.hpp"

#include <algorithm>
#include <cmath>

namespace edge_cl {
namespace {

constexpr int kWeightBits = 22;

double bilinear(double x) {
    x = std::fabs(x);
    return x < 1.0 ? 1.0 - x : 0.0;
}

// Keys' cubic convolution with a = -0.5; the order of operations decides the last bit.
double bicubic(double x) {
    constexpr double a = -0.5;
    x = std::fabs(x);
    if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
    if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
    return 0.0;
}

std::int32_t to_fixed(double weight) {
    return static_cast<std::int32_t>((weight < 0 ? -0.5 : 0.5) + weight * (1 << kWeightBits));
}

}  // namespace

void Taps::plan(int in, float from, float to, int out, Interpolation interpolation) {
    const double scale = static_cast<double>(to - from) / out, widening = std::max(scale, 1.0);
    const double support = (interpolation == Interpolation::bicubic ? 2.0 : 1.0) * widening;
    double (*const filter)(double) = interpolation == Interpolation::bicubic ? bicubic : bilinear;
    out_ = out;
    span_ = static_cast<int>(std::ceil(support)) * 2 + 1;
    weights_.resize(static_cast<std::size_t>(out) * static_cast<std::size_t>(span_));
    begins_.resize(static_cast<std::size_t>(out));
    counts_.resize(static_cast<std::size_t>(out));
    exact_.resize(static_cast<std::size_t>(span_));
    first_ = in;
    last_ = 0;
    for (int i = 0; i < out; ++i) {
        const double centre = static_cast<double>(from) + (i + 0.5) * scale, inverse = 1.0 / widening;
        const int begin = std::max(static_cast<int>(centre - support + 0.5), 0);
        const int end = std::min(static_cast<int>(centre + support + 0.5), in);
        double sum = 0;
        for (int x = begin; x < end; ++x) {
            const double weight = filter((x - centre + 0.5) * inverse);
            exact_[static_cast<std::size_t>(x - begin)] = weight;
            sum += weight;
        }
        std::int32_t* weights = weights_.data() + static_cast<std::size_t>(i) * static_cast<std::size_t>(span_);
        for (int x = begin; x < end; ++x) {
            const double weight = exact_[static_cast<std::size_t>(x - begin)];
            weights[x - begin] = to_fixed(sum != 0.0 ? weight / sum : weight);
        }
        const auto place = static_cast<std::size_t>(i);
        begins_[place] = begin;
        counts_[place] = end - begin;
        first_ = std::min(first_, begin);
        last_ = std::max(last_, end);
    }
}

bool is_down_first(int width, int height, int out) {
    return height > out && height - out > 2 * std::max(width - out, 0);
}

}  // namespace edge_cl
