// Reads any bytes as safetensors, and every tensor that they are said to hold.
#include <cstddef>
#include <cstdint>

#include "safetensors.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const edge_cl::Bytes bytes(data, data + size);
    const auto places = edge_cl::read_places(bytes, bytes.size());
    const auto tensors = edge_cl::Tensors::parse(bytes, "file");
    if (static_cast<bool>(places) != static_cast<bool>(tensors)) __builtin_trap();
    if (!places) return 0;
    for (const auto& [name, place] : *places) {
        if (place.offset > bytes.size() || place.size > bytes.size() - place.offset) __builtin_trap();
        (void)tensors->floats(name, place.shape);
        if (place.shape.size() == 2 && place.shape[1] > 0)  // of four bits, a last number fills up its byte or not
            for (const std::uint64_t width : {place.shape[1], 2 * place.shape[1], 2 * place.shape[1] - 1})
                if (const auto matrix = tensors->matrix(name, place.shape[0], width))
                    if (matrix->rows.size() + matrix->codes.size() != place.shape[0] * width) __builtin_trap();
        if (place.shape.size() == 1) (void)tensors->integers(name, place.shape[0]);
        for (std::size_t axis = 0; axis <= place.shape.size(); ++axis) (void)tensors->size(name, axis);
    }
    return 0;
}
