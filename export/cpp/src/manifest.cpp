#include "manifest.hpp"

#include <algorithm>
#include <cmath>
#include <exception>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "file.hpp"
#include "json_text.hpp"
#include "sha256.hpp"

namespace edge_cl {
namespace {

using Json = nlohmann::json;

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

std::size_t size_of(const Json& shape, const char* name) {
    const std::int64_t value = integer(shape, name);
    if (value <= 0 || value >= 1 << 20) throw Fault{"its shape cannot be: " + shape.dump()};
    return static_cast<std::size_t>(value);
}

Shape read_shape(const Json& value) {
    Shape shape{size_of(value, "depth"),  size_of(value, "split"),     size_of(value, "width"),
                size_of(value, "tokens"), size_of(value, "summaries"), size_of(value, "r")};
    // The product is bounded, so that no size computed from it can overflow.
    const double features = static_cast<double>(shape.depth) * static_cast<double>(shape.summaries) *
                            static_cast<double>(shape.width);
    if (shape.split >= shape.depth || features > 1 << 26) throw Fault{"its shape cannot be: " + value.dump()};
    return shape;
}

Preprocess read_preprocess(const Json& value) {
    Preprocess result;
    const std::int64_t side = integer(value, "image_size");
    if (side < 1 || side > 1 << 14) throw Fault{"its image size cannot be: " + std::to_string(side)};
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
    for (const Json& entry : value) {
        classes.push_back({integer(entry, "id"), text(entry, "name"), integer(entry, "task")});
        if (!ids.insert(classes.back().id).second)
            throw Fault{"two classes have the id " + std::to_string(classes.back().id)};
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
    if (!(result.temperature > 0)) throw Fault{"its temperature is not positive"};
    result.threshold =
        member(value, "threshold").is_null() ? std::numeric_limits<double>::infinity() : number(value, "threshold");
    result.files = read_files(member(value, "files"));
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

Result<Manifest> read_manifest(const std::string& bundle) {
    const std::string path = bundle + "/" + kManifest;
    bool missing = false;
    Result<Bytes> data = read_file(path, kMostManifest, &missing);
    if (missing)
        return Error{Code::no_bundle, bundle + " is no bundle: it has no " + kManifest + ".",
                     "Make one: edge-cl export OUT"};
    if (!data) return data.error();
    Result<Manifest> manifest = parse_manifest({reinterpret_cast<const char*>(data->data()), data->size()});
    if (!manifest)
        return Error{Code::bad_bundle, path + " is no manifest that can be used: " + manifest.error().what + ".",
                     "Export it again with this edge-cl: edge-cl export " + bundle};
    return manifest;
}

}  // namespace edge_cl
