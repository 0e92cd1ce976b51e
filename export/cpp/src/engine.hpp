// One TensorRT engine of a bundle.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "bundle.hpp"
#include "engine_sidecar.hpp"
#include "tensorrt_library.hpp"

namespace edge_cl {

/// A deserialised engine; contexts that run it are made of it, one for each pass.
class Engine {
public:
    /// Load the engine of `FOLDER/NAME.json`, if that says that it was made of what is wanted, on this platform.
    /// `loaded` is the one of that name before an update, or null; it serves on where the file is the same.
    static Result<std::shared_ptr<const Engine>> load(const TensorRt& trt, const std::string& folder,
                                                      const std::string& name, const EngineSidecar& wanted,
                                                      const std::shared_ptr<const Engine>& loaded);

    /// Check that there is such a tensor of such a shape; -1: the batch. `half` is told its type, which is float or half.
    Status check(const char* tensor, const std::vector<std::int64_t>& shape, bool* half) const;

    Result<std::unique_ptr<nvinfer1::IExecutionContext>> make_context() const;

    std::size_t max_batch() const { return max_batch_; }

private:
    Engine(const TensorRt& trt, std::string name) : trt_(trt), name_(std::move(name)) {}

    const TensorRt& trt_;
    std::string name_, sha256_;
    std::size_t max_batch_ = 0;
    std::unique_ptr<nvinfer1::ICudaEngine> engine_;
};

}  // namespace edge_cl
