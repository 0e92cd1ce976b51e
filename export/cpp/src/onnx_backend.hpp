// The ONNX Runtime backend: the embedded default, on the CPU.
#pragma once

#include <memory>

#include "backend.hpp"

namespace edge_cl {

/// Make the backend; see `MakeBackend`.
Result<std::shared_ptr<const Backend>> make_onnx_backend(const Bundle& bundle, const BackendOptions& options,
                                                         const std::shared_ptr<const Backend>& previous,
                                                         Watchdog& watchdog);

}  // namespace edge_cl
