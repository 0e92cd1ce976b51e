// What an engine on disk was made of: the JSON file beside it, as edge_cl/export/engine_key.py writes it.
#pragma once

#include <string>
#include <string_view>

#include "edge_cl/result.hpp"
#include "manifest.hpp"

namespace edge_cl {

/// What an engine is tied to: none runs, or runs well, anywhere else.
struct Platform {
    std::string tensorrt;            ///< version, "10.3.0"; as Python says it also "10.3.0.26"
    std::string cuda;                ///< version that the driver offers, such as "12.6"
    std::string gpu;                 ///< name
    std::string compute_capability;  ///< such as "8.7"
};

/// The parts of a sidecar that decide whether its engine may be run.
struct EngineSidecar {
    FileRef file;
    Platform platform;
    std::string graph_sha256, weights_sha256, overrides_sha256;
    std::size_t max_batch = 0;
};

/// Read a sidecar's bytes. The error says what is wrong, without the path.
Result<EngineSidecar> parse_sidecar(std::string_view data);

/// Say why an engine may not be run where another is wanted: it was made of other files, or on another platform. "": it
/// may be.
std::string key_fault(const EngineSidecar& found, const EngineSidecar& wanted);

/// Return the SHA-256 of weights that were put in the place of a graph's own; "" for none.
std::string overrides_digest(const std::map<std::string, std::vector<float>>& values, std::size_t rows, bool half);

}  // namespace edge_cl
