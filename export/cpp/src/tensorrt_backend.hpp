// The TensorRT backend: prefix and suffix as engines on the GPU of a Jetson board.
#pragma once

#include <memory>
#include <string>

#include "backend.hpp"

namespace edge_cl {

/// Whether a bundle has engines and this machine what runs them.
bool has_engines(const std::string& bundle, const BackendOptions& options);

/// Make the backend; see `MakeBackend`.
Result<std::shared_ptr<const Backend>> make_tensorrt_backend(const Bundle& bundle, const BackendOptions& options,
                                                             const std::shared_ptr<const Backend>& previous,
                                                             Watchdog& watchdog);

}  // namespace edge_cl
