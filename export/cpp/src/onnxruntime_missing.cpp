// Stands for the ONNX Runtime backend in a build without ONNX Runtime's headers.
#include "onnx_backend.hpp"

namespace edge_cl {

Result<std::shared_ptr<const Backend>> make_onnx_backend(const Bundle&, const BackendOptions&,
                                                         const std::shared_ptr<const Backend>&, Watchdog&) {
    return Error{Code::no_backend,
                 "This build has no ONNX Runtime backend: its headers were not found when it was configured.",
                 "Configure it again with -DONNXRUNTIME_ROOT=DIR."};
}

}  // namespace edge_cl
