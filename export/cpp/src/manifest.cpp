#include "manifest.hpp"

#include <sys/stat.h>

#include <algorithm>
#include <cmath>
#include <exception>
#include <filesystem>
#include <iterator>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string_view>

#include "file.hpp"
#include "json_text.hpp"
#include "sha256.hpp"

namespace edge_cl {
namespace {

using Json = nlohmann::json;

// The limits of export/consistency.py, which both runtimes keep: a manifest must not ask for much, whoever wrote it.
struct Most {
    const char* name;
    std::int64_t size;
};
constexpr Most kMost[] = {{"depth", 256},     {"split", 255},   {"width", 1 << 14},
                          {"tokens", 1 << 16}, {"summaries", 2}, {"r", 1 << 10}};
constexpr std::size_t kFactors = 1U << 26;  // depth times width times r
constexpr std::int64_t kSidePx = 1 << 12;   // of the input
constexpr std::int64_t kIds = 1 << 24;      // class ids stay exact as single-precision numbers
constexpr const char* kRequired[] = {"head", "prefix", "suffix", "weights"};

// What makes a manifest unusable; caught in `parse_manifest`.
struct Fault {
    std::string what;
};

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_hex(char c) { return is_digit(c) || (c >= 'a' && c <= 'f'); }
bool is_name(char c) { return is_digit(c) || (c >= 'a' && c <= 'z') || c == '-'; }

// The name becomes a path: nothing but a plain name with the file's own hash in it may lead anywhere.
bool is_file_name(const std::string& name, const std::string& hash) {
    const std::size_t dot = name.find('.');
    if (dot == std::string::npos || dot < 18) return false;
    const std::string suffix = name.substr(dot), stem = name.substr(0, dot - 17), tail = name.substr(dot - 17, 17);
    return (suffix == ".onnx" || suffix == ".safetensors") && stem[0] >= 'a' && stem[0] <= 'z' &&
           std::all_of(stem.begin(), stem.end(), is_name) && tail == "-" + hash.substr(0, 16);
}

const Json& member(const Json& object, const char* name) {
    if (!object.is_object() || !object.contains(name)) throw Fault{std::string("it has no '") + name + "'"};
    return object[name];
}

std::string text(const Json& object, const char* name) {
    const Json& value = member(object, name);
    if (!value.is_string()) throw Fault{std::string("its '") + name + "' is no text"};
    return value.get<std::string>();
}

std::int64_t integer(const Json& object, const char* name) {
    const Json& value = member(object, name);
    if (!value.is_number_integer() ||
        (value.is_number_unsigned() && value.get<std::uint64_t>() > std::numeric_limits<std::int64_t>::max()))
        throw Fault{std::string("its '") + name + "' is no whole number"};
    return value.get<std::int64_t>();
}

double number(const Json& object, const char* name) {
    const Json& value = member(object, name);
    if (!value.is_number() || !std::isfinite(value.get<double>()))
        throw Fault{std::string("its '") + name + "' is no number"};
    return value.get<double>();
}

Shape read_shape(const Json& value) {
    const Fault cannot_be{"its shape cannot be: " + value.dump()};
    std::size_t sizes[std::size(kMost)] = {};
    for (std::size_t i = 0; i < std::size(kMost); ++i) {
        const std::int64_t size = integer(value, kMost[i].name);
        if (size < 1 || size > kMost[i].size) throw cannot_be;
        sizes[i] = static_cast<std::size_t>(size);
    }
    const Shape shape{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5]};
    if (shape.split >= shape.depth || shape.r > shape.width || shape.depth * shape.width * shape.r > kFactors)
        throw cannot_be;
    return shape;
}

Preprocess read_preprocess(const Json& value) {
    Preprocess result;
    const std::int64_t side = integer(value, "image_size");
    if (side < 1 || side > kSidePx) throw Fault{"its image size cannot be: " + std::to_string(side)};
    result.image_size = static_cast<int>(side);
    const std::string interpolation = text(value, "interpolation");
    if (interpolation != "bilinear" && interpolation != "bicubic")
        throw Fault{"its interpolation is unknown: " + interpolation};
    result.interpolation = interpolation == "bicubic" ? Interpolation::bicubic : Interpolation::bilinear;
    result.crop_fraction = number(value, "crop_fraction");
    if (!(result.crop_fraction > 0 && result.crop_fraction <= 1)) throw Fault{"its crop fraction is not in (0, 1]"};
    return result;
}

std::vector<BundleClass> read_classes(const Json& value) {
    if (!value.is_array()) throw Fault{"its classes are no list"};
    std::vector<BundleClass> classes;
    std::set<std::int64_t> ids;
    std::set<std::string> names;
    for (const Json& entry : value) {
        const BundleClass& known =
            classes.emplace_back(BundleClass{integer(entry, "id"), text(entry, "name"), integer(entry, "task")});
        if (!ids.insert(known.id).second) throw Fault{"two classes have the id " + std::to_string(known.id)};
        if (!names.insert(known.name).second) throw Fault{"two classes have the name '" + known.name + "'"};
        for (const std::int64_t number : {known.id, known.task})
            if (number < 0 || number >= kIds)
                throw Fault{"a class has an id or task that is not from 0 to " + std::to_string(kIds - 1)};
    }
    return classes;
}

std::map<std::string, FileRef, std::less<>> read_files(const Json& value) {
    if (!value.is_object()) throw Fault{"its files are no object"};
    std::map<std::string, FileRef, std::less<>> files;
    for (const auto& [role, entry] : value.items()) {
        FileRef ref{text(entry, "name"), text(entry, "sha256"), 0};
        const std::int64_t size = integer(entry, "size");
        const bool is_hash = ref.sha256.size() == 64 && std::all_of(ref.sha256.begin(), ref.sha256.end(), is_hex);
        if (!is_hash || !is_file_name(ref.name, ref.sha256) || size < 0)
            throw Fault{"its file '" + role + "' is not described by a name, a SHA-256 and a size"};
        ref.size = static_cast<std::uint64_t>(size);
        files.emplace(role, std::move(ref));
    }
    return files;
}

void check_files(const Manifest& manifest) {
    std::vector<std::string> wanted(std::begin(kRequired), std::end(kRequired));
    const std::string adapter = "adapter/";
    for (const auto& [role, ref] : manifest.files)  // an adapter that is folded in nowhere would silently not count
        if (!manifest.shared && role.compare(0, adapter.size(), adapter) == 0)
            wanted.push_back(role == "adapter/shared" ? "merged/prefix" : "merged/" + role.substr(adapter.size()));
    for (const std::string& role : wanted)
        if (!manifest.has(role)) throw Fault{"it names no '" + role + "'"};
}

Manifest read(std::string_view data) {
    if (data.size() > kMostManifest) throw Fault{"it is larger than 8 MiB"};
    if (!is_shallow(data)) throw Fault{"it is nested too deeply"};
    const Json file = Json::parse(data.begin(), data.end(), nullptr, false);
    if (!file.is_object()) throw Fault{"it is no JSON object"};
    const Json& value = member(file, "manifest");
    const std::int64_t format = integer(value, "format");
    if (format != kFormat)
        throw Fault{"it has format " + std::to_string(format) + ", and this edge-cl reads format " +
                    std::to_string(kFormat)};
    const std::optional<std::string> written = compact_member(data, "manifest");
    Manifest result;
    result.sha256 = sha256(written.value_or(""));
    if (result.sha256 != text(file, "sha256"))
        throw Fault{"its content has SHA-256 " + result.sha256 + ", expected " + text(file, "sha256")};
    const std::string layout = text(value, "layout"), precision = text(value, "precision");
    if ((layout != "shared" && layout != "merged") || (precision != "fp32" && precision != "fp16"))
        throw Fault{"it says layout '" + layout + "' and precision '" + precision + "'"};
    result.shared = layout == "shared";
    result.half = precision == "fp16";
    result.version = integer(value, "version");
    result.shape = read_shape(member(value, "shape"));
    result.preprocess = read_preprocess(member(member(value, "backbone"), "preprocess"));
    result.classes = read_classes(member(value, "classes"));
    result.temperature = number(value, "temperature");
    const auto temperature = static_cast<float>(result.temperature);  // as the head divides by it
    if (!(temperature > 0 && std::isfinite(temperature)))
        throw Fault{"its temperature is not positive and finite in single precision"};
    constexpr double kEndless = std::numeric_limits<double>::infinity();
    result.threshold = member(value, "threshold").is_null() ? kEndless : number(value, "threshold");
    const bool has_least = value.contains("least_score") && !value.at("least_score").is_null();  // earlier ones: none
    result.least_score = has_least ? number(value, "least_score") : -kEndless;
    result.files = read_files(member(value, "files"));
    check_files(result);
    return result;
}

}  // namespace

std::vector<std::int64_t> Manifest::tasks() const {
    std::set<std::int64_t> tasks;
    for (const BundleClass& known : classes) tasks.insert(known.task);
    return {tasks.begin(), tasks.end()};
}

Result<Manifest> parse_manifest(std::string_view data) {
    try {
        return read(data);
    } catch (const Fault& fault) {
        return Error{Code::bad_bundle, fault.what, ""};
    } catch (const std::exception& error) {
        return Error{Code::bad_bundle, error.what(), ""};
    }
}

std::string shell_quoted(const std::string& argument) {
    const auto is_plain = [](unsigned char c) {
        return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
               std::string_view("@%+=:,./-_").find(static_cast<char>(c)) != std::string_view::npos;
    };
    if (!argument.empty() && std::all_of(argument.begin(), argument.end(), is_plain)) return argument;
    std::string result = "'";
    for (const char c : argument) result += c == '\'' ? std::string("'\"'\"'") : std::string(1, c);
    return result + "'";
}

std::string export_command(const std::string& bundle) { return "edge-cl export " + shell_quoted(bundle); }

namespace {

Error no_bundle(const std::string& path) {
    namespace fs = std::filesystem;
    std::error_code failed;
    const fs::path root(path);
    if (!fs::is_directory(root / "objects", failed) || !fs::is_directory(root / "versions", failed))
        return {Code::no_bundle, path + " is no bundle: it has no " + kManifest + ".",
                "Make one: " + export_command(path)};
    const fs::path store = fs::canonical(root, failed);
    return {Code::no_bundle, path + " is a store, not a bundle.",
            "Make a bundle of it, and use that: " +
                export_command((failed ? root : store).string() + "-bundle") + " --store " + shell_quoted(path)};
}

}  // namespace

Result<Manifest> read_manifest(const std::string& bundle) {
    const std::string path = bundle + "/" + kManifest;
    bool missing = false;
    Result<Bytes> data = read_file(path, kMostManifest, &missing);
    if (missing) return no_bundle(bundle);
    if (!data) return data.error();
    Result<Manifest> manifest = parse_manifest({reinterpret_cast<const char*>(data->data()), data->size()});
    if (!manifest)
        return Error{Code::bad_bundle, path + " is no manifest that can be used: " + manifest.error().what + ".",
                     "Export it again with this edge-cl: " + export_command(bundle)};
    return manifest;
}

Publication publication_of(const std::string& bundle) {
    struct stat status {};
    if (::stat((bundle + "/" + kManifest).c_str(), &status) != 0) return {};
    return {static_cast<std::int64_t>(status.st_ino), status.st_mtim.tv_sec, status.st_mtim.tv_nsec};
}

}  // namespace edge_cl
