// The inner loops, compiled once for every processor and once for those with AVX2; the best is chosen when it runs.
#pragma once

#include <cstddef>
#include <cstdint>

namespace edge_cl {

/// The weights of `Taps` as plain pointers. No class with inline functions is used here: the linker could take the
/// AVX2 copy of such a function for the whole program.
struct TapTable {
    const std::int32_t* weights;  ///< (out, span)
    const int* begins;            ///< (out,), input position of the first weight
    const int* counts;            ///< (out,), number of weights
    int out, span, first, last;
};

constexpr std::size_t kBlockRows = 8;  ///< that are resampled across at once
constexpr std::size_t kGroup = 64;     ///< codes of a row that share a scale; the last of a row may be fewer

/// How many scales a row has; static, for the linker's sake too.
static inline constexpr std::size_t groups(std::size_t size) { return size / kGroup + (size % kGroup != 0 ? 1 : 0); }

struct Kernels {
    /// Resample `kBlockRows` rows of pixels of three bytes, the first of which is pixel `first`; the new rows have no gaps,
    /// and `count` of them are written. `room` is for 3 * kBlockRows * (last - first + out) + 8 bytes.
    void (*across)(const TapTable&, const std::uint8_t* const* rows, std::size_t count, std::uint8_t* room,
                   std::uint8_t* out);
    /// Resample rows of `width` bytes, `stride` apart, the first of which is row `first`; the new rows have no gaps.
    void (*down)(const TapTable&, const std::uint8_t* rows, std::size_t stride, std::size_t width, std::uint8_t* out);
    /// Return the inner product of two vectors.
    float (*dot)(const float* a, const float* b, std::size_t size);
    /// Write the inner products of a vector with `count` rows of a matrix.
    void (*dots)(const float* x, const float* rows, std::size_t count, std::size_t size, float* out);
    /// The same of a matrix of few bits, as `Matrix` holds it.
    void (*code_dots)(const float* x, const std::int8_t* codes, const float* scales, std::size_t count,
                      std::size_t size, float* out);
    /// Add a multiple of a vector to another.
    void (*add_scaled)(float factor, const float* row, std::size_t size, float* sum);

    /// Those that suit this processor.
    static const Kernels& best();
    /// Those for every processor.
    static const Kernels& portable();
    /// Those for AVX2; nullptr where this processor or this build has none.
    static const Kernels* avx2();
};

}  // namespace edge_cl
