// The inner loops, compiled once for every processor and once for those with AVX2; the best is chosen when it runs.
#pragma once

#include <cstddef>
#include <cstdint>

namespace edge_cl {

/// The weights of `Taps` as plain pointers. No class with inline functions is used here: the linker could take the
/// AVX2 copy of such a function for the whole program.
struct TapTable {
    const std::int32_t* weights;  ///< (out, span)
    const std::int32_t* spread;   ///< (out, span, 4), each weight repeated for the four bytes of its pixel
    const int* begins;            ///< (out,), input position of the first weight
    const int* own;               ///< (out, 2), input position and number of the weights that are not padding
    int out, span, first;
};

struct Kernels {
    /// Copy `count` pixels of three bytes to pixels of four; `swap`: blue comes first in `row`, and red in `out`.
    void (*expand)(const std::uint8_t* row, std::size_t count, bool swap, std::uint8_t* out);
    /// Resample a row of pixels of four bytes to pixels of three.
    void (*across)(const TapTable&, const std::uint8_t* row, std::uint8_t* out);
    /// Resample rows of `width` bytes, `stride` apart, the first of which is row `first`; the new rows have no gaps.
    void (*down)(const TapTable&, const std::uint8_t* rows, std::size_t stride, std::size_t width, std::uint8_t* out);
    /// Return the inner product of two vectors.
    float (*dot)(const float* a, const float* b, std::size_t size);
    /// Write the inner products of a vector with `count` rows of a matrix.
    void (*dots)(const float* x, const float* rows, std::size_t count, std::size_t size, float* out);
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
