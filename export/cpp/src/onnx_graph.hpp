// One graph of a bundle, loaded by ONNX Runtime.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "onnxruntime.hpp"

namespace edge_cl {

/// A session; safe to run from several threads.
class OnnxGraph {
public:
    /// What must be true of an input or output: its element type, and its shape with -1 for the batch.
    struct Port {
        const char* name;
        ONNXTensorElementDataType type;
        std::vector<std::int64_t> shape;
    };

    /// Weights that take the place of those that a graph names in its weights file.
    struct Override {
        std::vector<std::int64_t> shape;
        std::vector<std::uint8_t> data;  ///< of the graph's own type
    };
    using Overrides = std::map<std::string, Override>;

    /// Load a graph.
    static Result<std::shared_ptr<const OnnxGraph>> load(const OnnxRuntime& ort, const std::string& path, int threads,
                                                         Overrides overrides, ONNXTensorElementDataType type);

    /// Check that the graph has these inputs and outputs.
    Status check(const std::vector<Port>& inputs, const std::vector<Port>& outputs) const;

    OrtSession* session() const { return session_.get(); }

private:
    explicit OnnxGraph(const OnnxRuntime& ort) : ort_(&ort), session_(ort) {}
    Status check_port(const Port& port, bool is_input) const;

    const OnnxRuntime* ort_;
    Overrides overrides_;  // the session may read them as long as it lives
    OrtOwned<OrtSession> session_;
    std::string path_;
};

}  // namespace edge_cl
