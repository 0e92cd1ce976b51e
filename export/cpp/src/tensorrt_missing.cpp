// Stands for the TensorRT backend in a build without TensorRT's headers.
#include "tensorrt_backend.hpp"

namespace edge_cl {

bool has_engines(const std::string&, const BackendOptions&) { return false; }

Result<std::shared_ptr<const Backend>> make_tensorrt_backend(const Bundle&, const BackendOptions&,
                                                             const std::shared_ptr<const Backend>&, Watchdog&) {
    return Error{Code::no_backend, "This build has no TensorRT backend: its headers were not found when it was configured.",
                 "Configure it again with -DTENSORRT_ROOT=DIR, or use the backend onnxruntime."};
}

}  // namespace edge_cl
