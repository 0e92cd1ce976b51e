#include "bundle.hpp"

#include <algorithm>
#include <initializer_list>
#include <utility>

#include "kernels.hpp"
#include "sha256.hpp"

namespace edge_cl {
namespace {

constexpr int kReads = 5;  // tries to open a bundle that is being updated

bool holds(const Manifest& manifest, const FileRef& wanted) {
    return std::any_of(manifest.files.begin(), manifest.files.end(),
                       [&](const auto& entry) { return entry.second == wanted; });
}

// A tensor, the shape that it must have, and where its elements go.
struct Wanted {
    const char* name;
    std::vector<std::uint64_t> shape;
    std::vector<float>& values;
};

Status read(const Tensors& tensors, std::initializer_list<Wanted> wanted) {
    for (const Wanted& tensor : wanted) {
        Result<std::vector<float>> values = tensors.floats(tensor.name, tensor.shape);
        if (!values) return values.error();
        tensor.values = std::move(*values);
    }
    return {};
}

}  // namespace

Status check_file(const std::string& bundle, const FileRef& ref) {
    const std::string path = bundle + "/" + ref.name;
    Result<File> file = File::open(path);
    if (!file) return file.error();
    if (file->size() != ref.size)
        return Error{Code::bad_bundle,
                     path + " has " + std::to_string(file->size()) + " bytes, expected " + std::to_string(ref.size) +
                         ".",
                     ""};
    Sha256 digest;
    Bytes piece(std::size_t{1} << 20);
    std::uint64_t total = 0;
    while (total <= ref.size) {
        Result<std::size_t> count = file->read(piece.data(), piece.size());
        if (!count) return count.error();
        if (*count == 0) break;
        digest.update(piece.data(), *count);
        total += *count;
    }
    const std::string found = digest.hex();
    if (total != ref.size || found != ref.sha256)
        return Error{Code::bad_bundle,
                     path + " has other content than its manifest says (SHA-256 " + found + ").", ""};
    return {};
}

Result<Bundle> Bundle::open(const std::string& path, const Bundle* known) {
    Bundle bundle;
    bundle.path_ = path;
    std::string faults;
    for (int read = 0; read < kReads; ++read) {
        const Publication published = publication_of(path);
        Result<Manifest> manifest = edge_cl::read_manifest(path);
        if (!manifest) return manifest.error();
        bundle.manifest_ = std::move(*manifest);
        faults.clear();
        for (const auto& [role, ref] : bundle.manifest_.files) {
            if (known && holds(known->manifest_, ref)) continue;
            if (Status whole = check_file(path, ref); !whole) faults += (faults.empty() ? "" : "\n") + whole.error().what;
        }
        if (faults.empty()) return bundle;
        if (publication_of(path) == published) break;  // no update: the faults are real
    }
    return bundle.advise({Code::bad_bundle, faults, ""});
}

Error Bundle::advise(Error error) const {
    if (error.mend.empty()) error.mend = "Export it again: " + export_command(path_);
    return error;
}

Result<std::string> Bundle::file(const std::string& role) const {
    const auto found = manifest_.files.find(role);
    if (found == manifest_.files.end())
        return advise({Code::bad_bundle, path_ + "/" + kManifest + " names no '" + role + "'.", ""});
    return path_ + "/" + found->second.name;
}

Result<Tensors> Bundle::tensors(const std::string& role) const {
    Result<std::string> path = file(role);
    if (!path) return path.error();
    Result<Bytes> data = read_file(*path, manifest_.files.find(role)->second.size);
    if (!data) return advise(data.error());
    Result<Tensors> tensors = Tensors::parse(std::move(*data), *path);
    if (!tensors) return advise(tensors.error());
    return tensors;
}

Result<Factors> Bundle::factors(const std::string& role) const {
    const Shape& shape = manifest_.shape;
    const std::size_t depth = role == "adapter/shared" ? shape.split : shape.depth - shape.split;
    Result<Tensors> tensors = this->tensors(role);
    if (!tensors) return tensors.error();
    const std::uint64_t rank = tensors->size("A", 2);
    if (rank > shape.r)
        return advise({Code::bad_bundle, *file(role) + ": its rank is larger than the bundle's.", ""});
    std::vector<float> a, b;
    const Status done = read(*tensors, {{"A", {depth, 2, rank, shape.width}, a}, {"B", {depth, 2, shape.width, rank}, b}});
    if (!done) return advise(done.error());
    return joint_factors(a, b, depth, static_cast<std::size_t>(rank), shape.width, shape.r);
}

Factors joint_factors(const std::vector<float>& a, const std::vector<float>& b, std::size_t depth, std::size_t rank,
                      std::size_t width, std::size_t r) {
    Factors factors{std::vector<float>(depth * 2 * r * width), std::vector<float>(depth * 3 * width * 2 * r)};
    for (std::size_t block = 0; block < depth; ++block)
        for (std::size_t part = 0; part < 2; ++part) {  // query, value
            const float* down = a.data() + (block * 2 + part) * rank * width;
            std::copy(down, down + rank * width, factors.down.data() + ((block * 2 + part) * r) * width);
            const float* up = b.data() + (block * 2 + part) * width * rank;
            for (std::size_t row = 0; row < width; ++row)
                std::copy(up + row * rank, up + (row + 1) * rank,
                          factors.up.data() + (((block * 3 + 2 * part) * width + row) * 2 + part) * r);
        }
    return factors;
}

Result<std::map<std::int64_t, Factors>> Bundle::adapters() const {
    std::map<std::int64_t, std::string> roles{{kBase, "adapter/base"}};
    for (const std::int64_t task : manifest_.tasks()) roles[task] = "adapter/" + std::to_string(task);
    std::map<std::int64_t, Factors> result;
    for (const auto& [task, role] : roles) {
        if (!manifest_.has(role)) continue;
        Result<Factors> factors = this->factors(role);
        if (!factors) return factors.error();
        result.emplace(task, std::move(*factors));
    }
    return result;
}

Result<std::map<std::string, std::vector<float>>> Bundle::merged_projections() const {
    std::map<std::string, std::vector<float>> merged;
    if (!manifest_.has("adapter/shared")) return merged;
    Result<Factors> factors = this->factors("adapter/shared");
    if (!factors) return factors.error();
    Result<std::string> path = file("weights");
    if (!path) return path.error();
    Result<TensorFile> weights = TensorFile::open(*path);
    if (!weights) return advise(weights.error());
    const std::size_t width = manifest_.shape.width, rank = 2 * manifest_.shape.r, columns = 3 * width;
    std::vector<float> up(rank * columns), delta(columns);
    const Kernels& kernels = Kernels::best();
    for (std::size_t block = 0; block < manifest_.shape.split; ++block) {
        const std::string name = "blocks." + std::to_string(block) + ".attn.qkv.weight";
        Result<std::vector<float>> weight = weights->floats(name, {width, columns});
        if (!weight) return advise(weight.error());
        for (std::size_t k = 0; k < rank; ++k)  // laid out (R, 3D), so that the sums below run along rows
            for (std::size_t column = 0; column < columns; ++column)
                up[k * columns + column] = factors->up[(block * columns + column) * rank + k];
        for (std::size_t row = 0; row < width; ++row) {
            std::fill(delta.begin(), delta.end(), 0.0F);
            for (std::size_t k = 0; k < rank; ++k)
                kernels.add_scaled(factors->down[(block * rank + k) * width + row], up.data() + k * columns, columns,
                                   delta.data());
            kernels.add_scaled(1.0F, delta.data(), columns, weight->data() + row * columns);
        }
        merged.emplace(name, std::move(*weight));
    }
    return merged;
}

Result<Head> Bundle::bare_head(const std::string& role, std::uint64_t features, const Tensors& tensors) const {
    const std::uint64_t count = manifest_.classes.size(), rank = tensors.size("basis", 0);
    Result<Matrix> weight = tensors.matrix("weight", count, features);
    if (!weight) return advise(weight.error());
    Result<Matrix> basis = tensors.matrix("basis", rank, features);
    if (!basis) return advise(basis.error());
    Head head;
    head.discriminant.weight = std::move(*weight);
    head.basis = std::move(*basis);
    std::vector<float> variance;
    const Status done = read(tensors, {{"bias", {count}, head.discriminant.bias},
                                       {"centre", {features}, head.discriminant.centre},
                                       {"gain", {rank}, head.gain},
                                       {"variance", {1}, variance}});
    if (!done) return advise(done.error());
    if (!(variance[0] > 0)) return advise({Code::bad_bundle, *file(role) + ": its variance is not positive.", ""});
    head.prepare();
    head.variance = variance[0];
    for (const BundleClass& known : manifest_.classes) head.names.push_back(known.name);
    return head;
}

Result<Head> Bundle::head() const {
    Result<Tensors> tensors = this->tensors("head");
    if (!tensors) return tensors.error();
    Result<Head> made = bare_head("head", manifest_.shape.features(), *tensors);
    if (!made) return made.error();
    Head head = std::move(*made);
    head.temperature = static_cast<float>(manifest_.temperature);
    head.threshold = static_cast<float>(manifest_.threshold);
    head.least_score = static_cast<float>(manifest_.least_score);
    const std::vector<std::int64_t> tasks = manifest_.tasks();
    for (const BundleClass& known : manifest_.classes) {
        const auto place = std::lower_bound(tasks.begin(), tasks.end(), known.task);
        head.tasks.push_back(static_cast<std::size_t>(place - tasks.begin()));
    }
    for (const std::int64_t task : tasks) {
        head.branches.emplace_back();
        head.branches.back().task = task;
        if (!manifest_.has("branch/" + std::to_string(task))) continue;
        Result<Branch> branch = this->branch(task);
        if (!branch) return branch.error();
        head.branches.back() = std::move(*branch);
    }
    if (manifest_.has("spread")) {
        Result<Quadratic> quadratic = this->quadratic();
        if (!quadratic) return quadratic.error();
        head.quadratic = std::move(*quadratic);
    }
    if (manifest_.has("exit")) {
        Result<Exit> exit = this->exit();
        if (!exit) return exit.error();
        head.exit = std::make_shared<const Exit>(std::move(*exit));
    }
    return head;
}

Result<Quadratic> Bundle::quadratic() const {
    Result<Tensors> tensors = this->tensors("spread");
    if (!tensors) return tensors.error();
    const std::uint64_t count = manifest_.classes.size(), rows = tensors->size("weight", 0);
    if (count == 0 || rows % count != 0)
        return advise({Code::bad_bundle, *file("spread") + ": its weight has no whole number of rows a class.", ""});
    Result<Matrix> weight = tensors->matrix("weight", rows, count);
    if (!weight) return advise(weight.error());
    Quadratic quadratic{std::move(*weight), {}, {}};
    const Status done = read(*tensors, {{"offset", {rows}, quadratic.offset}, {"cost", {count}, quadratic.cost}});
    if (!done) return advise(done.error());
    return quadratic;
}

Result<Exit> Bundle::exit() const {
    Result<Tensors> tensors = this->tensors("exit");
    if (!tensors) return tensors.error();
    Result<Head> head = bare_head("exit", manifest_.shape.prefix_features(), *tensors);
    if (!head) return head.error();
    Result<std::vector<float>> fit = tensors->floats("fit", {3});
    if (!fit) return advise(fit.error());
    Exit exit{std::move(*head), (*fit)[2]};
    exit.head.temperature = (*fit)[0];
    exit.head.threshold = (*fit)[1];
    if (!(exit.head.temperature > 0 && exit.confidence > 0))
        return advise({Code::bad_bundle, *file("exit") + ": its temperature or confidence is not positive.", ""});
    return exit;
}

Result<Branch> Bundle::branch(std::int64_t task) const {
    const std::string role = "branch/" + std::to_string(task);
    std::map<std::int64_t, std::size_t> columns;
    for (std::size_t i = 0; i < manifest_.classes.size(); ++i)
        if (manifest_.classes[i].task == task) columns.emplace(manifest_.classes[i].id, i);
    Result<Tensors> tensors = this->tensors(role);
    if (!tensors) return tensors.error();
    const std::uint64_t features = manifest_.shape.features(), count = columns.size();
    Result<Matrix> weight = tensors->matrix("weight", count, features);
    if (!weight) return advise(weight.error());
    Branch branch;
    branch.task = task;
    branch.discriminant.weight = std::move(*weight);
    std::vector<float> prototypes, share;
    const Status done = read(*tensors, {{"bias", {count}, branch.discriminant.bias},
                                        {"centre", {features}, branch.discriminant.centre},
                                        {"prototypes", {count, manifest_.shape.width}, prototypes},
                                        {"share", {2}, share}});
    if (!done) return advise(done.error());
    if (!(share[0] >= 0 && share[0] <= 1 && share[1] > 0))
        return advise({Code::bad_bundle, *file(role) + ": its share is not from 0 to 1, or its temperature not positive.",
                       ""});
    branch.share = share[0];
    branch.temperature = share[1];
    Result<std::vector<std::int64_t>> ids = tensors->integers("classes", count);
    if (!ids) return advise(ids.error());
    for (const std::int64_t id : *ids) {
        const auto found = columns.find(id);
        if (found == columns.end())
            return advise(
                {Code::bad_bundle, *file(role) + " speaks of classes that are not the task's.", ""});
        branch.columns.push_back(found->second);
        columns.erase(found);
    }
    return branch;
}

}  // namespace edge_cl
