#include "onnx_graph.hpp"

#include <cstring>
#include <utility>

namespace edge_cl {

Result<std::shared_ptr<const OnnxGraph>> OnnxGraph::load(const OnnxRuntime& ort, const std::string& path, int threads,
                                                         Overrides overrides, ONNXTensorElementDataType type) {
    const OrtApi& api = ort.api();
    std::shared_ptr<OnnxGraph> graph(new OnnxGraph(ort));
    graph->path_ = path;
    graph->overrides_ = std::move(overrides);
    OrtOwned<OrtSessionOptions> options(ort);
    Status done = ort.check(api.CreateSessionOptions(options.out()), "options");
    if (done) done = ort.check(api.SetSessionLogSeverityLevel(options.get(), ORT_LOGGING_LEVEL_ERROR), "options");
    if (done)  // a robot's other programs need the cores
        done = ort.check(api.AddSessionConfigEntry(options.get(), "session.intra_op.allow_spinning", "0"), "options");
    if (done && threads > 0) done = ort.check(api.SetIntraOpNumThreads(options.get(), threads), "its threads");
    if (!done) return done.error();
    std::vector<const char*> names;
    std::vector<OrtOwned<OrtValue>> values;
    std::vector<const OrtValue*> places;
    for (auto& [name, given] : graph->overrides_) {
        Result<OrtOwned<OrtValue>> value = wrap_tensor(ort, given.data.data(), given.data.size(), given.shape, type);
        if (!value) return value.error();
        names.push_back(name.c_str());
        places.push_back(value->get());
        values.push_back(std::move(*value));
    }
    if (!names.empty()) {
        // Plain initialisers would come too late: in fp16 the graph's own have been converted by then.
        done = ort.check(api.AddExternalInitializers(options.get(), names.data(), places.data(), names.size()),
                         "the adapted weights");
        if (!done) return done.error();
    }
    done = ort.check(api.CreateSession(ort.environment(), path.c_str(), options.get(), graph->session_.out()), path);
    if (!done) return done.error();
    return std::shared_ptr<const OnnxGraph>(std::move(graph));
}

Status OnnxGraph::check(const std::vector<Port>& inputs, const std::vector<Port>& outputs) const {
    const OrtApi& api = ort_->api();
    std::size_t counts[2] = {};
    Status done = ort_->check(api.SessionGetInputCount(session_.get(), &counts[0]), path_);
    if (done) done = ort_->check(api.SessionGetOutputCount(session_.get(), &counts[1]), path_);
    if (!done) return done;
    if (counts[0] != inputs.size() || counts[1] != outputs.size())
        return Error{Code::bad_bundle, path_ + " has other inputs or outputs than its manifest's layout asks for.", ""};
    for (const Port& port : inputs)
        if (done = check_port(port, true); !done) return done;
    for (const Port& port : outputs)
        if (done = check_port(port, false); !done) return done;
    return {};
}

Status OnnxGraph::check_port(const Port& port, bool is_input) const {
    const OrtApi& api = ort_->api();
    OrtAllocator* allocator = nullptr;
    Status done = ort_->check(api.GetAllocatorWithDefaultOptions(&allocator), "memory");
    std::size_t count = 0;
    const auto counting = is_input ? api.SessionGetInputCount : api.SessionGetOutputCount;
    const auto naming = is_input ? api.SessionGetInputName : api.SessionGetOutputName;
    const auto typing = is_input ? api.SessionGetInputTypeInfo : api.SessionGetOutputTypeInfo;
    if (done) done = ort_->check(counting(session_.get(), &count), path_);
    for (std::size_t i = 0; done && i < count; ++i) {
        char* name = nullptr;
        if (done = ort_->check(naming(session_.get(), i, allocator, &name), path_); !done) break;
        const bool is_it = std::strcmp(name, port.name) == 0;
        allocator->Free(allocator, name);
        if (!is_it) continue;
        OrtOwned<OrtTypeInfo> type(*ort_);
        const OrtTensorTypeAndShapeInfo* tensor = nullptr;
        if (done = ort_->check(typing(session_.get(), i, type.out()), path_); !done) break;
        if (done = ort_->check(api.CastTypeInfoToTensorInfo(type.get(), &tensor), path_); !done) break;
        ONNXTensorElementDataType element = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
        std::size_t dimensions = 0;
        std::vector<std::int64_t> shape;
        if (tensor != nullptr) {
            done = ort_->check(api.GetTensorElementType(tensor, &element), path_);
            if (done) done = ort_->check(api.GetDimensionsCount(tensor, &dimensions), path_);
            shape.resize(dimensions);
            if (done) done = ort_->check(api.GetDimensions(tensor, shape.data(), dimensions), path_);
        }
        if (!done) break;
        if (element == port.type && shape == port.shape) return {};
        return Error{Code::bad_bundle, path_ + ": '" + port.name + "' has another type or shape than its manifest says.",
                     ""};
    }
    if (!done) return done;
    return Error{Code::bad_bundle, path_ + " has no '" + port.name + "'.", ""};
}

}  // namespace edge_cl
