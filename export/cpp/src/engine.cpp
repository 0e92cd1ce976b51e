#include "engine.hpp"

#include <utility>

namespace edge_cl {
namespace {

constexpr std::uint64_t kMostSidecar = 8U << 20;
constexpr const char* kMend = "Export the bundle again on this board, or use the backend onnxruntime.";

}  // namespace

Result<std::shared_ptr<const Engine>> Engine::load(const TensorRt& trt, const std::string& folder,
                                                   const std::string& name, const EngineSidecar& wanted,
                                                   const std::shared_ptr<const Engine>& loaded) {
    const std::string path = folder + "/" + name + ".json";
    bool missing = false;
    Result<Bytes> text = read_file(path, kMostSidecar, &missing);
    if (missing) return Error{Code::no_backend, "There is no engine " + path + ".", kMend};
    if (!text) return Error{Code::bad_bundle, text.error().what, kMend};
    Result<EngineSidecar> sidecar = parse_sidecar({reinterpret_cast<const char*>(text->data()), text->size()});
    if (!sidecar) return Error{Code::bad_bundle, path + " cannot be trusted: " + sidecar.error().what + ".", kMend};
    if (const std::string fault = key_fault(*sidecar, wanted); !fault.empty())
        return Error{Code::bad_bundle, "The engine of " + path + " " + fault + ".", kMend};
    if (loaded && loaded->sha256_ == sidecar->file.sha256) return loaded;
    if (Status whole = check_file(folder, sidecar->file); !whole)
        return Error{Code::bad_bundle, whole.error().what, kMend};
    Result<Bytes> data = read_file(folder + "/" + sidecar->file.name, sidecar->file.size);
    if (!data) return Error{Code::bad_bundle, data.error().what, kMend};
    std::shared_ptr<Engine> engine(new Engine(trt, name));
    engine->engine_.reset(trt.runtime().deserializeCudaEngine(data->data(), data->size()));
    if (!engine->engine_)
        return Error{Code::backend, "TensorRT cannot load the engine of " + path + ": " + trt.complaint() + ".", kMend};
    engine->max_batch_ = sidecar->max_batch;
    engine->sha256_ = sidecar->file.sha256;
    return std::shared_ptr<const Engine>(std::move(engine));
}

Status Engine::check(const char* tensor, const std::vector<std::int64_t>& shape, bool* half) const {
    const nvinfer1::Dims found = engine_->getTensorShape(tensor);
    bool same = found.nbDims == static_cast<int>(shape.size());
    for (std::size_t i = 0; same && i < shape.size(); ++i) same = found.d[i] == shape[i];
    const nvinfer1::DataType type = engine_->getTensorDataType(tensor);
    const bool is_half = type == nvinfer1::DataType::kHALF;
    if (half != nullptr) *half = is_half;
    const bool known = half != nullptr ? is_half || type == nvinfer1::DataType::kFLOAT : type == nvinfer1::DataType::kUINT8;
    if (same && known) return {};
    return Error{Code::bad_bundle, "The engine " + name_ + ": '" + tensor + "' has another type or shape than it must.",
                 kMend};
}

Result<std::unique_ptr<nvinfer1::IExecutionContext>> Engine::make_context() const {
    std::unique_ptr<nvinfer1::IExecutionContext> context(
        const_cast<nvinfer1::ICudaEngine&>(*engine_).createExecutionContext());
    if (!context) return Error{Code::backend, "TensorRT cannot run " + name_ + ": " + trt_.complaint() + ".", kMend};
    return context;
}

}  // namespace edge_cl
