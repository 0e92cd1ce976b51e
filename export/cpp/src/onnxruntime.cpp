#include "onnxruntime.hpp"

#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>

#include "half.hpp"
#include "library.hpp"

#ifndef EDGE_CL_ONNXRUNTIME_LIBRARY
#define EDGE_CL_ONNXRUNTIME_LIBRARY ""
#endif

namespace edge_cl {
namespace {

constexpr const char* kMend =
    "Install ONNX Runtime 1.17 or newer, or name its library: EDGE_CL_ONNXRUNTIME=/path/to/libonnxruntime.so";

// What the library asks back when it makes tensors that own their memory.
Result<OrtAllocator*> default_allocator(const OnnxRuntime& ort) {
    OrtAllocator* allocator = nullptr;
    if (Status done = ort.check(ort.api().GetAllocatorWithDefaultOptions(&allocator), "finding memory"); !done)
        return done.error();
    return allocator;
}

}  // namespace

Result<const OnnxRuntime*> OnnxRuntime::load(const std::string& path) {
    static std::mutex mutex;
    static auto& loaded = *new std::map<std::string, std::unique_ptr<OnnxRuntime>>;  // never destroyed: threads may run on
    const std::lock_guard lock(mutex);
    if (const auto found = loaded.find(path); found != loaded.end()) return found->second.get();
    ::setenv("ORT_DISABLE_TELEMETRY", "1", 0);  // it would write an id of the machine and report its use
    Result<void*> library = open_library(path, "EDGE_CL_ONNXRUNTIME",
                                         {EDGE_CL_ONNXRUNTIME_LIBRARY, "libonnxruntime.so.1", "libonnxruntime.so"});
    if (!library) return Error{Code::no_backend, "ONNX Runtime was not found: " + library.error().what, kMend};
    using GetApiBase = const OrtApiBase* (*)();
    const auto base = reinterpret_cast<GetApiBase>(find_symbol(*library, "OrtGetApiBase"));
    if (base == nullptr) return Error{Code::no_backend, "The library that was found is no ONNX Runtime.", kMend};
    auto result = std::make_unique<OnnxRuntime>();
    result->api_ = base()->GetApi(kOrtApi);
    if (result->api_ == nullptr)
        return Error{Code::no_backend, std::string("ONNX Runtime ") + base()->GetVersionString() + " is too old.",
                     kMend};
    OrtStatus* status = result->api_->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "edge_cl", &result->environment_);
    if (Status done = result->check(status, "starting"); !done) return done.error();
    return loaded.emplace(path, std::move(result)).first->second.get();
}

Status OnnxRuntime::check(OrtStatus* status, const std::string& doing) const {
    if (status == nullptr) return {};
    Error error{Code::backend, "ONNX Runtime refuses " + doing + ": " + api_->GetErrorMessage(status) + ".", ""};
    api_->ReleaseStatus(status);
    return error;
}

Result<OrtOwned<OrtValue>> wrap_tensor(const OnnxRuntime& ort, void* data, std::size_t bytes,
                                       const std::vector<std::int64_t>& shape, ONNXTensorElementDataType type) {
    OrtOwned<OrtMemoryInfo> memory(ort);
    Status done = ort.check(ort.api().CreateCpuMemoryInfo(OrtDeviceAllocator, OrtMemTypeDefault, memory.out()),
                            "describing memory");
    if (!done) return done.error();
    OrtOwned<OrtValue> value(ort);
    done = ort.check(ort.api().CreateTensorWithDataAsOrtValue(memory.get(), data, bytes, shape.data(), shape.size(),
                                                              type, value.out()),
                     "a tensor");
    if (!done) return done.error();
    return value;
}

std::vector<std::uint8_t> tensor_bytes(const std::vector<float>& values, bool half) {
    std::vector<std::uint8_t> bytes(values.size() * (half ? 2 : 4));
    if (!half && !bytes.empty()) std::memcpy(bytes.data(), values.data(), bytes.size());
    for (std::size_t i = 0; half && i < values.size(); ++i) {
        const std::uint16_t value = float_to_half(values[i]);
        std::memcpy(bytes.data() + 2 * i, &value, sizeof value);
    }
    return bytes;
}

Result<OrtOwned<OrtValue>> make_tensor(const OnnxRuntime& ort, const std::vector<float>& values,
                                       const std::vector<std::int64_t>& shape, bool half) {
    Result<OrtAllocator*> allocator = default_allocator(ort);
    if (!allocator) return allocator.error();
    OrtOwned<OrtValue> value(ort);
    const ONNXTensorElementDataType type =
        half ? ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    Status done = ort.check(
        ort.api().CreateTensorAsOrtValue(*allocator, shape.data(), shape.size(), type, value.out()), "a tensor");
    if (!done) return done.error();
    void* data = nullptr;
    done = ort.check(ort.api().GetTensorMutableData(value.get(), &data), "a tensor's memory");
    if (!done) return done.error();
    const std::vector<std::uint8_t> bytes = tensor_bytes(values, half);
    if (!bytes.empty()) std::memcpy(data, bytes.data(), bytes.size());
    return value;
}

}  // namespace edge_cl
