#include "backend.hpp"

#include "onnx_backend.hpp"
#include "tensorrt_backend.hpp"

namespace edge_cl {

const std::map<std::string, MakeBackend>& backends() {
    static const std::map<std::string, MakeBackend> all{
        {"onnxruntime", make_onnx_backend},
        {"tensorrt", make_tensorrt_backend},
    };
    return all;
}

std::string choose_backend(const std::string& bundle, const BackendOptions& options) {
    return has_engines(bundle, options) ? "tensorrt" : "onnxruntime";
}

}  // namespace edge_cl
