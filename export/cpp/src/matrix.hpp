// Matrices that vectors are multiplied by.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace edge_cl {

/// Rows of equal width, in single precision or in few bits: a frame reads all of a head's, and memory is slower than
/// the sums. `edge_cl/rounding.py` says what few bits mean.
struct Matrix {
    std::vector<float> rows;          ///< (n, F); none where `codes` has them
    std::vector<std::int8_t> codes;   ///< (n, F)
    std::vector<float> scales;        ///< (n, G), of each group of `kGroup` codes

    /// Write the inner products of a vector of `size` numbers with `count` rows.
    void dots(const float* x, std::size_t size, std::size_t first, std::size_t count, float* out) const;
};

}  // namespace edge_cl
