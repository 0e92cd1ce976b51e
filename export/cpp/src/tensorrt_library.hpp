// TensorRT's library, found when the program runs.
#pragma once

#include <NvInferRuntime.h>

#include <memory>
#include <string>

#include "edge_cl/result.hpp"

namespace edge_cl {

/// The library, loaded once and kept for the life of the process.
class TensorRt {
public:
    /// Load it from a path, or from where it is found. It must be of the major version of the headers, 10.3 or newer:
    /// numbers of enumerations differ between major versions.
    static Result<const TensorRt*> load(const std::string& path);

    nvinfer1::IRuntime& runtime() const { return *runtime_; }

    const std::string& version() const { return version_; }

    /// Return what the library complained of last on this thread's behalf.
    std::string complaint() const;

private:
    std::string version_;
    std::unique_ptr<nvinfer1::IRuntime> runtime_;
};

}  // namespace edge_cl
