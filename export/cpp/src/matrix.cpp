#include "matrix.hpp"

#include "kernels.hpp"

namespace edge_cl {

void Matrix::dots(const float* x, std::size_t size, std::size_t first, std::size_t count, float* out) const {
    const Kernels& kernels = Kernels::best();
    if (codes.empty())
        kernels.dots(x, rows.data() + first * size, count, size, out);
    else
        kernels.code_dots(x, codes.data() + first * size, scales.data() + first * groups(size), count, size, out);
}

}  // namespace edge_cl
