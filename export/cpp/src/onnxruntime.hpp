// ONNX Runtime's C API, found when the program runs: a board without it gets a message, not a failing start.
#pragma once

#include <onnxruntime_c_api.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "edge_cl/result.hpp"

namespace edge_cl {

/// Oldest version of the library that is used; what came later is not called.
constexpr std::uint32_t kOrtApi = 17;

/// The library, loaded once and kept for the life of the process.
class OnnxRuntime {
public:
    /// Load it from a path, or from where it is found: see `Options::onnxruntime`.
    static Result<const OnnxRuntime*> load(const std::string& path);

    const OrtApi& api() const { return *api_; }
    OrtEnv* environment() const { return environment_; }

    /// Turn a status into an error, and release it.
    Status check(OrtStatus* status, const std::string& doing) const;

    /// Release one of the library's objects.
    void release(OrtSession* object) const { api_->ReleaseSession(object); }
    void release(OrtSessionOptions* object) const { api_->ReleaseSessionOptions(object); }
    void release(OrtRunOptions* object) const { api_->ReleaseRunOptions(object); }
    void release(OrtValue* object) const { api_->ReleaseValue(object); }
    void release(OrtMemoryInfo* object) const { api_->ReleaseMemoryInfo(object); }
    void release(OrtTypeInfo* object) const { api_->ReleaseTypeInfo(object); }

private:
    const OrtApi* api_ = nullptr;
    OrtEnv* environment_ = nullptr;
};

/// Owns one of the library's objects.
template <class T>
class OrtOwned {
public:
    explicit OrtOwned(const OnnxRuntime& ort) : ort_(&ort) {}
    OrtOwned(OrtOwned&& other) noexcept : ort_(other.ort_), object_(other.object_) { other.object_ = nullptr; }
    OrtOwned& operator=(OrtOwned&& other) noexcept {
        std::swap(ort_, other.ort_);
        std::swap(object_, other.object_);
        return *this;
    }
    ~OrtOwned() { reset(); }

    T* get() const { return object_; }
    T** out() {
        reset();
        return &object_;
    }
    explicit operator bool() const { return object_ != nullptr; }

private:
    void reset() {
        if (object_ != nullptr) ort_->release(object_);
        object_ = nullptr;
    }

    const OnnxRuntime* ort_;
    T* object_ = nullptr;
};

/// Make a tensor around memory that lives longer than it.
Result<OrtOwned<OrtValue>> wrap_tensor(const OnnxRuntime& ort, void* data, std::size_t bytes,
                                       const std::vector<std::int64_t>& shape, ONNXTensorElementDataType type);

/// Return values as the bytes of a tensor; `half`: they are converted.
std::vector<std::uint8_t> tensor_bytes(const std::vector<float>& values, bool half);

/// Make a tensor that owns its memory, of float values; `half`: they are converted.
Result<OrtOwned<OrtValue>> make_tensor(const OnnxRuntime& ort, const std::vector<float>& values,
                                       const std::vector<std::int64_t>& shape, bool half);

}  // namespace edge_cl
