// What an engine on disk was made of: the JSON file beside it, as edge_cl/export/engine_key.py writes it.
#pragma once

#include <string>
#include <string_view>

#include "edge_cl/result.hpp"
#include "manifest.hpp"

namespace edge_cl {

/// The parts of a sidecar that decide whether its engine may be run.
struct EngineSidecar {
    FileRef file;
    std::string graph_sha256, weights_sha256, overrides_sha256;
    std::size_t max_batch = 0;
};

/// Read a sidecar's bytes. The error says what is wrong, without the path.
Result<EngineSidecar> parse_sidecar(std::string_view data);

/// Return the SHA-256 of weights that were put in the place of a graph's own; "" for none.
std::string overrides_digest(const std::map<std::string, std::vector<float>>& values, std::size_t rows, bool half);

}  // namespace edge_cl
