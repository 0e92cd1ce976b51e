#include "onnx_backend.hpp"

#include <map>
#include <string>
#include <utility>

#include "onnx_graph.hpp"
#include "onnx_pass.hpp"

namespace edge_cl {
namespace {

using Key = std::vector<std::string>;  // what decides a session: its graph, its weights, the adapter merged in
using Graphs = std::map<Key, std::shared_ptr<const OnnxGraph>>;

class OnnxBackend final : public Backend {
public:
    OnnxBackend(const OnnxRuntime& ort, const Bundle& bundle, int threads, Watchdog& watchdog)
        : manifest_(bundle.manifest()), threads_(threads) {
        graphs_.ort = &ort;
        graphs_.shape = manifest_.shape;
        graphs_.side = static_cast<std::size_t>(manifest_.preprocess.image_size);
        graphs_.half = manifest_.half;
        graphs_.watchdog = &watchdog;
    }

    Status load(const Bundle& bundle, const Graphs& known);

    const char* name() const override { return "onnxruntime"; }
    bool has_branch(std::int64_t task) const override { return graphs_.suffixes.count(task) != 0; }
    Result<std::unique_ptr<Pass>> begin() const override { return begin_onnx_pass(graphs_); }
    const Graphs& sessions() const { return sessions_; }

private:
    Result<std::shared_ptr<const OnnxGraph>> session(const Bundle& bundle, const std::string& role,
                                                     const Graphs& known);
    Result<OnnxSuffix> suffix(const Bundle& bundle, std::int64_t task, const Factors& factors, const Graphs& known);
    Status check_prefix() const;
    Status check_suffix(const OnnxGraph& graph, bool has_lora) const;

    Manifest manifest_;
    int threads_;
    Graphs sessions_;
    OnnxGraphs graphs_;
};

Status OnnxBackend::load(const Bundle& bundle, const Graphs& known) {
    const Shape& shape = manifest_.shape;
    const bool is_merged = !manifest_.shared && manifest_.has("merged/prefix");
    Result<std::shared_ptr<const OnnxGraph>> prefix = session(bundle, is_merged ? "merged/prefix" : "prefix", known);
    if (!prefix) return prefix.error();
    graphs_.prefix = *prefix;
    if (Status fits = check_prefix(); !fits) return fits;
    Result<std::map<std::int64_t, Factors>> adapters = bundle.adapters();
    if (!adapters) return adapters.error();
    const std::vector<float> none;
    if (adapters->count(kBase) == 0)  // without an adapter the base branch has one that does nothing
        adapters->emplace(kBase, joint_factors(none, none, shape.depth - shape.split, 0, shape.width, shape.r));
    for (const auto& [task, factors] : *adapters) {
        Result<OnnxSuffix> made = suffix(bundle, task, factors, known);
        if (!made) return made.error();
        graphs_.suffixes.emplace(task, std::move(*made));
    }
    return {};
}

Result<OnnxSuffix> OnnxBackend::suffix(const Bundle& bundle, std::int64_t task, const Factors& factors,
                                       const Graphs& known) {
    const Shape& shape = manifest_.shape;
    std::string role = "suffix";
    if (!manifest_.shared) {
        const std::string merged = task == kBase ? "merged/base" : "merged/" + std::to_string(task);
        if (manifest_.has(merged)) role = merged;
    }
    Result<std::shared_ptr<const OnnxGraph>> graph = session(bundle, role, known);
    if (!graph) return graph.error();
    if (Status fits = check_suffix(**graph, manifest_.shared); !fits) return fits.error();
    OnnxSuffix result(*graphs_.ort);
    result.graph = *graph;
    if (!manifest_.shared) return result;
    const auto depth = static_cast<std::int64_t>(shape.depth - shape.split), width = static_cast<std::int64_t>(shape.width),
               rank = static_cast<std::int64_t>(2 * shape.r);
    Result<OrtOwned<OrtValue>> down = make_tensor(*graphs_.ort, factors.down, {depth, rank, width}, manifest_.half);
    if (!down) return down.error();
    Result<OrtOwned<OrtValue>> up = make_tensor(*graphs_.ort, factors.up, {depth, 3 * width, rank}, manifest_.half);
    if (!up) return up.error();
    result.down = std::move(*down);
    result.up = std::move(*up);
    return result;
}

Result<std::shared_ptr<const OnnxGraph>> OnnxBackend::session(const Bundle& bundle, const std::string& role,
                                                              const Graphs& known) {
    Result<std::string> path = bundle.file(role);
    if (!path) return path.error();
    if (Result<std::string> weights = bundle.file("weights"); !weights) return weights.error();
    Key key{role, manifest_.files.find(role)->second.sha256, manifest_.files.find("weights")->second.sha256};
    const bool is_adapted = role == "prefix" && manifest_.shared && manifest_.has("adapter/shared");
    if (is_adapted) key.push_back(manifest_.files.find("adapter/shared")->second.sha256);
    if (const auto found = sessions_.find(key); found != sessions_.end()) return found->second;
    if (const auto found = known.find(key); found != known.end()) return sessions_.emplace(*found).first->second;
    OnnxGraph::Overrides overrides;
    if (is_adapted) {
        Result<std::map<std::string, std::vector<float>>> merged = bundle.merged_projections();
        if (!merged) return merged.error();
        const auto width = static_cast<std::int64_t>(manifest_.shape.width);
        for (const auto& [name, values] : *merged)
            overrides.emplace(name, OnnxGraph::Override{{width, 3 * width}, tensor_bytes(values, manifest_.half)});
    }
    Result<std::shared_ptr<const OnnxGraph>> graph =
        OnnxGraph::load(*graphs_.ort, *path, threads_, std::move(overrides), graphs_.type());
    if (!graph) {
        graph.error().mend = "Export it again: " + export_command(bundle.path());
        return graph.error();
    }
    return sessions_.emplace(std::move(key), *graph).first->second;
}

Status OnnxBackend::check_prefix() const {
    const Shape& shape = manifest_.shape;
    const auto side = static_cast<std::int64_t>(graphs_.side);
    const auto tokens = static_cast<std::int64_t>(shape.tokens), width = static_cast<std::int64_t>(shape.width);
    return graphs_.prefix->check(
        {{"image", ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, {-1, side, side, 3}}},
        {{"tokens", graphs_.type(), {-1, tokens, width}},
         {"features", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, {-1, static_cast<std::int64_t>(shape.prefix_features())}}});
}

Status OnnxBackend::check_suffix(const OnnxGraph& graph, bool has_lora) const {
    const Shape& shape = manifest_.shape;
    const auto depth = static_cast<std::int64_t>(shape.depth - shape.split), rank = static_cast<std::int64_t>(2 * shape.r);
    const auto tokens = static_cast<std::int64_t>(shape.tokens), width = static_cast<std::int64_t>(shape.width);
    std::vector<OnnxGraph::Port> inputs{{"tokens", graphs_.type(), {-1, tokens, width}}};
    if (has_lora) {
        inputs.push_back({"lora_down", graphs_.type(), {depth, rank, width}});
        inputs.push_back({"lora_up", graphs_.type(), {depth, 3 * width, rank}});
    }
    return graph.check(inputs, {{"features",
                                 ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
                                 {-1, static_cast<std::int64_t>(shape.suffix_features())}}});
}

}  // namespace

Result<std::shared_ptr<const Backend>> make_onnx_backend(const Bundle& bundle, const BackendOptions& options,
                                                         const std::shared_ptr<const Backend>& previous,
                                                         Watchdog& watchdog) {
    Result<const OnnxRuntime*> ort = OnnxRuntime::load(options.onnxruntime);
    if (!ort) return ort.error();
    auto backend = std::make_shared<OnnxBackend>(**ort, bundle, options.threads, watchdog);
    const auto* before = dynamic_cast<const OnnxBackend*>(previous.get());
    if (Status loaded = backend->load(bundle, before != nullptr ? before->sessions() : Graphs{}); !loaded)
        return loaded.error();
    return std::shared_ptr<const Backend>(std::move(backend));
}

}  // namespace edge_cl
