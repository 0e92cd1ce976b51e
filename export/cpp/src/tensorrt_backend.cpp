#include "tensorrt_backend.hpp"

#include <algorithm>
#include <utility>

#include "half.hpp"
#include "tensorrt_pass.hpp"

namespace edge_cl {
namespace {

std::string folder_of(const std::string& bundle, const BackendOptions& options) {
    return options.engines.empty() ? bundle + "/engines" : options.engines;
}

class TensorRtBackend final : public Backend {
public:
    TensorRtBackend(const TensorRt& trt, std::shared_ptr<const Cuda> cuda, const Manifest& manifest)
        : manifest_(manifest) {
        engines_.trt = &trt;
        engines_.cuda = std::move(cuda);
        engines_.shape = manifest.shape;
        engines_.side = static_cast<std::size_t>(manifest.preprocess.image_size);
    }

    /// Load what the bundle needs; engines of the version before, or null, serve on where their files are the same.
    Status load(const Bundle& bundle, const std::string& folder, const TensorRtBackend* previous);

    const char* name() const override { return "tensorrt"; }
    bool has_branch(std::int64_t task) const override { return engines_.suffixes.count(task) != 0; }
    Result<std::unique_ptr<Pass>> begin() const override { return begin_tensorrt_pass(engines_); }

private:
    Result<std::shared_ptr<const Engine>> engine(const std::string& folder, const std::string& name,
                                                 const std::string& role, const std::string& overrides);
    Status load_suffixes(const Bundle& bundle, const std::string& folder);
    Status check_suffix(const Engine& engine);
    Result<CudaMemory> upload(const std::vector<float>& values);

    Manifest manifest_;
    TensorRtEngines engines_;
    std::map<std::string, std::shared_ptr<const Engine>> loaded_, before_;  // by name; before_ only while it loads
};

Result<std::shared_ptr<const Engine>> TensorRtBackend::engine(const std::string& folder, const std::string& name,
                                                              const std::string& role, const std::string& overrides) {
    if (const auto found = loaded_.find(name); found != loaded_.end()) return found->second;
    EngineSidecar wanted;
    const Cuda& cuda = *engines_.cuda;
    wanted.platform = {engines_.trt->version(), cuda.version, cuda.gpu, cuda.compute_capability};
    wanted.graph_sha256 = manifest_.files.at(role).sha256;
    wanted.weights_sha256 = manifest_.files.at("weights").sha256;
    wanted.overrides_sha256 = overrides;
    const auto before = before_.find(name);
    Result<std::shared_ptr<const Engine>> made = Engine::load(*engines_.trt, folder, name, wanted,
                                                              before != before_.end() ? before->second : nullptr);
    if (!made) return made.error();
    return loaded_.emplace(name, *made).first->second;
}

Status TensorRtBackend::load(const Bundle& bundle, const std::string& folder, const TensorRtBackend* previous) {
    const Cuda::Active active(*engines_.cuda);
    if (previous != nullptr) before_ = previous->loaded_;
    const bool is_merged = !manifest_.shared && manifest_.has("merged/prefix");
    const std::string role = is_merged ? "merged/prefix" : "prefix";
    for (const std::string& needed : {role, std::string("weights"), std::string("suffix")})
        if (Result<std::string> path = bundle.file(needed); !path) return path.error();
    std::string overrides;
    if (manifest_.shared) {
        Result<std::map<std::string, std::vector<float>>> merged = bundle.merged_projections();
        if (!merged) return merged.error();
        overrides = overrides_digest(*merged, manifest_.shape.width, manifest_.half);
    }
    Result<std::shared_ptr<const Engine>> prefix = engine(folder, "prefix", role, overrides);
    if (!prefix) return prefix.error();
    engines_.prefix = *prefix;
    engines_.max_batch = std::min((*prefix)->max_batch(), kBatch);
    const Shape& shape = manifest_.shape;
    const auto side = static_cast<std::int64_t>(engines_.side);
    bool is_half = false;
    Status fits = (*prefix)->check("image", {-1, side, side, 3}, nullptr);
    if (fits)
        fits = (*prefix)->check(
            "tokens", {-1, static_cast<std::int64_t>(shape.tokens), static_cast<std::int64_t>(shape.width)},
            &engines_.half);
    if (fits)
        fits = (*prefix)->check("features", {-1, static_cast<std::int64_t>(shape.prefix_features())}, &is_half);
    if (!fits) return fits;
    if (is_half) return Error{Code::bad_bundle, "The engine prefix gives its features in fp16.", "Export it again."};
    fits = load_suffixes(bundle, folder);
    before_.clear();
    return fits;
}

Status TensorRtBackend::load_suffixes(const Bundle& bundle, const std::string& folder) {
    const Shape& shape = manifest_.shape;
    Result<std::map<std::int64_t, Factors>> adapters = bundle.adapters();
    if (!adapters) return adapters.error();
    const std::vector<float> none;
    if (adapters->count(kBase) == 0)
        adapters->emplace(kBase, joint_factors(none, none, shape.depth - shape.split, 0, shape.width, shape.r));
    for (const auto& [task, factors] : *adapters) {
        std::string name = "suffix", role = "suffix";
        if (!manifest_.shared) {
            const std::string part = task == kBase ? "base" : std::to_string(task);
            name = "suffix-" + part;
            if (manifest_.has("merged/" + part)) role = "merged/" + part;
        }
        TensorRtSuffix suffix;
        Result<std::shared_ptr<const Engine>> made = engine(folder, name, role, "");
        if (!made) return made.error();
        suffix.engine = *made;
        if (Status fits = check_suffix(**made); !fits) return fits;
        engines_.max_batch = std::min(engines_.max_batch, (*made)->max_batch());
        if (manifest_.shared) {
            Result<CudaMemory> down = upload(factors.down);
            if (!down) return down.error();
            Result<CudaMemory> up = upload(factors.up);
            if (!up) return up.error();
            suffix.down = std::move(*down);
            suffix.up = std::move(*up);
        }
        engines_.suffixes.emplace(task, std::move(suffix));
    }
    return {};
}

Status TensorRtBackend::check_suffix(const Engine& engine) {
    const Shape& shape = manifest_.shape;
    const auto depth = static_cast<std::int64_t>(shape.depth - shape.split), rank = static_cast<std::int64_t>(2 * shape.r);
    const auto tokens = static_cast<std::int64_t>(shape.tokens), width = static_cast<std::int64_t>(shape.width);
    bool halves[4] = {engines_.half, false, engines_.half, engines_.half};
    Status fits = engine.check("tokens", {-1, tokens, width}, &halves[0]);
    if (fits) fits = engine.check("features", {-1, static_cast<std::int64_t>(shape.suffix_features())}, &halves[1]);
    if (fits && manifest_.shared) fits = engine.check("lora_down", {depth, rank, width}, &halves[2]);
    if (fits && manifest_.shared) fits = engine.check("lora_up", {depth, 3 * width, rank}, &halves[3]);
    if (!fits) return fits;
    if (halves[0] != engines_.half || halves[1] || halves[2] != engines_.half || halves[3] != engines_.half)
        return Error{Code::bad_bundle, "The engines of prefix and suffix are of different precision.",
                     "Export the bundle again on this board."};
    return {};
}

Result<CudaMemory> TensorRtBackend::upload(const std::vector<float>& values) {
    std::vector<std::uint16_t> halves;
    if (engines_.half) std::transform(values.begin(), values.end(), std::back_inserter(halves), float_to_half);
    const void* const from = engines_.half ? static_cast<const void*>(halves.data()) : values.data();
    const std::size_t bytes = values.size() * (engines_.half ? 2 : 4);
    Result<CudaMemory> memory = CudaMemory::allocate(engines_.cuda, CudaMemory::Place::device, bytes);
    if (!memory) return memory.error();
    Status done = engines_.cuda->check(engines_.cuda->to_device(memory->device(), from, bytes, nullptr), "a copy");
    if (done) done = engines_.cuda->check(engines_.cuda->stream_synchronize(nullptr), "a copy");
    if (!done) return done.error();
    return memory;
}

}  // namespace

bool has_engines(const std::string& bundle, const BackendOptions& options) {
    bool missing = false;
    const Result<File> sidecar = File::open(folder_of(bundle, options) + "/prefix.json", &missing);
    return sidecar && TensorRt::load(options.tensorrt) && Cuda::open();
}

Result<std::shared_ptr<const Backend>> make_tensorrt_backend(const Bundle& bundle, const BackendOptions& options,
                                                             const std::shared_ptr<const Backend>& previous,
                                                             Watchdog&) {
    Result<const TensorRt*> trt = TensorRt::load(options.tensorrt);
    if (!trt) return trt.error();
    Result<std::shared_ptr<const Cuda>> cuda = Cuda::open();
    if (!cuda) return cuda.error();
    auto backend = std::make_shared<TensorRtBackend>(**trt, *cuda, bundle.manifest());
    const auto* const before = dynamic_cast<const TensorRtBackend*>(previous.get());
    Status loaded = backend->load(bundle, folder_of(bundle.path(), options), before);
    if (!loaded) return loaded.error();
    return std::shared_ptr<const Backend>(std::move(backend));
}

}  // namespace edge_cl
