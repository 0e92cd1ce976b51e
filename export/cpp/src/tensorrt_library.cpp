#include "tensorrt_library.hpp"

#include <map>
#include <mutex>
#include <utility>

#include "library.hpp"

namespace edge_cl {
namespace {

constexpr const char* kMend = "Install TensorRT (it comes with JetPack), or use the backend onnxruntime.";

// Keeps the last error; the library holds on to it for ever.
class Logger final : public nvinfer1::ILogger {
public:
    void log(Severity severity, const char* text) noexcept override {
        if (severity > Severity::kERROR) return;
        const std::lock_guard lock(mutex_);
        try {
            last_ = text;
        } catch (...) {
            last_.clear();
        }
    }
    std::string last() {
        const std::lock_guard lock(mutex_);
        return last_.empty() ? "TensorRT gives no reason" : last_;
    }

private:
    std::mutex mutex_;
    std::string last_;
};

Logger& logger() {
    static Logger& only = *new Logger;
    return only;
}

std::string version_text(int version) {
    return std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) + "." +
           std::to_string(version % 100);
}

}  // namespace

Result<const TensorRt*> TensorRt::load(const std::string& path) {
    static std::mutex mutex;
    static auto& loaded = *new std::map<std::string, std::unique_ptr<TensorRt>>;
    const std::lock_guard lock(mutex);
    if (const auto found = loaded.find(path); found != loaded.end()) return found->second.get();
    const std::string usual = "libnvinfer.so." + std::to_string(NV_TENSORRT_MAJOR);
    Result<void*> library = open_library(path, "EDGE_CL_TENSORRT", {usual});
    if (!library) return Error{Code::no_backend, "TensorRT was not found: " + library.error().what, kMend};
    const auto get_version = reinterpret_cast<int (*)()>(find_symbol(*library, "getInferLibVersion"));
    const auto create =
        reinterpret_cast<void* (*)(void*, std::int32_t)>(find_symbol(*library, "createInferRuntime_INTERNAL"));
    if (get_version == nullptr || create == nullptr)
        return Error{Code::no_backend, "The library that was found is no TensorRT.", kMend};
    const int version = get_version();
    if (version / 10000 != NV_TENSORRT_MAJOR || version < 100300)
        return Error{Code::no_backend,
                     "TensorRT " + version_text(version) + " was found, and this build is for TensorRT " +
                         std::to_string(NV_TENSORRT_MAJOR) + (NV_TENSORRT_MAJOR == 10 ? ", from 10.3 on." : "."),
                     "Build edge_cl with the headers of the board's TensorRT, or update JetPack."};
    auto result = std::make_unique<TensorRt>();
    result->version_ = version_text(version);
    result->runtime_.reset(static_cast<nvinfer1::IRuntime*>(create(&logger(), NV_TENSORRT_VERSION)));
    if (!result->runtime_)
        return Error{Code::no_backend, "TensorRT " + version_text(version) + " does not start: " + logger().last() + ".",
                     kMend};
    return loaded.emplace(path, std::move(result)).first->second.get();
}

std::string TensorRt::complaint() const { return logger().last(); }

}  // namespace edge_cl
