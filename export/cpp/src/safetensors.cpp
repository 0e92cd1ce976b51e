#include "safetensors.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>
#include <utility>

#include "half.hpp"
#include "json_text.hpp"
#include "kernels.hpp"

namespace edge_cl {
namespace {

using Json = nlohmann::json;

constexpr std::uint64_t kMostHeader = 16U << 20;
constexpr std::uint64_t kMostElements = std::uint64_t{1} << 40;

Error damaged(const std::string& why) { return {Code::bad_bundle, "It is no safetensors file: " + why + ".", ""}; }

std::uint64_t element_size(const std::string& dtype) {
    static const std::map<std::string, std::uint64_t> sizes{{"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"I16", 2},
                                                            {"U16", 2},  {"F16", 2}, {"BF16", 2}, {"I32", 4},
                                                            {"U32", 4},  {"F32", 4}, {"F64", 8}, {"I64", 8},
                                                            {"U64", 8}};
    const auto found = sizes.find(dtype);
    return found == sizes.end() ? 0 : found->second;
}

bool is_natural(const Json& value) { return value.is_number_unsigned(); }

// Return the length of the header that eight bytes say.
std::uint64_t header_length(const Bytes& start) {
    std::uint64_t length = 0;
    for (std::size_t i = 0; i < 8; ++i) length |= static_cast<std::uint64_t>(start[i]) << (8 * i);
    return length;
}

// Read one entry of the header; offsets are still counted from the end of the header.
Result<TensorPlace> read_place(const std::string& name, const Json& entry) {
    if (!entry.is_object() || !entry.contains("dtype") || !entry.contains("shape") || !entry.contains("data_offsets"))
        return damaged(name + " is not described by dtype, shape and data_offsets");
    const Json &dtype = entry["dtype"], &shape = entry["shape"], &offsets = entry["data_offsets"];
    if (!dtype.is_string() || !shape.is_array() || !offsets.is_array() || offsets.size() != 2 ||
        !is_natural(offsets[0]) || !is_natural(offsets[1]) || !std::all_of(shape.begin(), shape.end(), is_natural))
        return damaged(name + " has a dtype, shape or data_offsets of the wrong kind");
    TensorPlace place;
    place.dtype = dtype.get<std::string>();
    std::uint64_t elements = 1;
    for (const Json& size : shape) {
        place.shape.push_back(size.get<std::uint64_t>());
        if (place.shape.back() != 0 && elements > kMostElements / place.shape.back())
            return damaged(name + " is too large");
        elements *= place.shape.back();
    }
    const std::uint64_t bytes = element_size(place.dtype);
    if (bytes == 0) return damaged(name + " has the unknown dtype " + place.dtype);
    place.offset = offsets[0].get<std::uint64_t>();
    const std::uint64_t end = offsets[1].get<std::uint64_t>();
    if (end < place.offset || end - place.offset != elements * bytes)
        return damaged(name + " has another size than its shape");
    place.size = end - place.offset;
    return place;
}

// Every byte after the header belongs to exactly one tensor.
Status check_cover(const TensorPlaces& places, std::uint64_t size) {
    std::vector<std::pair<std::uint64_t, std::uint64_t>> spans;
    for (const auto& [name, place] : places) spans.emplace_back(place.offset, place.size);
    std::sort(spans.begin(), spans.end());
    std::uint64_t end = 0;
    for (const auto& [offset, length] : spans) {
        if (offset != end || length > size - end) return damaged("its tensors overlap, leave gaps or reach past the end");
        end += length;
    }
    if (end != size) return damaged("it has bytes that belong to no tensor");
    return {};
}

// Return a tensor's place, if its shape is as wanted.
Result<const TensorPlace*> find(const TensorPlaces& places, const std::string& file, std::string_view name,
                                const std::vector<std::uint64_t>& shape) {
    const std::string title = file + ": " + std::string(name);
    const auto found = places.find(name);
    if (found == places.end() || found->second.shape.size() != shape.size())
        return Error{Code::bad_bundle,
                     title + " is missing, or not of " + std::to_string(shape.size()) + " dimensions.", ""};
    for (std::size_t i = 0; i < shape.size(); ++i)
        if (shape[i] != found->second.shape[i])
            return Error{Code::bad_bundle,
                         title + " has " + std::to_string(found->second.shape[i]) + " along axis " +
                             std::to_string(i) + ", not " + std::to_string(shape[i]) + ".",
                         ""};
    return &found->second;
}

Error not_finite(const std::string& title) {
    return {Code::bad_bundle, title + " holds values that are not finite.", ""};
}

// Return the elements of a tensor whose bytes are at hand.
Result<std::vector<float>> decode(const std::uint8_t* bytes, const TensorPlace& place, const std::string& title) {
    std::vector<float> values;
    if (place.dtype == "F32") {
        values.resize(static_cast<std::size_t>(place.size / 4));
        if (!values.empty()) std::memcpy(values.data(), bytes, static_cast<std::size_t>(place.size));
    } else if (place.dtype == "F16") {
        values.resize(static_cast<std::size_t>(place.size / 2));
        for (std::size_t i = 0; i < values.size(); ++i)
            values[i] = half_to_float(static_cast<std::uint16_t>(bytes[2 * i] | bytes[2 * i + 1] << 8));
    } else {
        return Error{Code::bad_bundle, title + " is " + place.dtype + ", not F32 or F16.", ""};
    }
    if (!std::all_of(values.begin(), values.end(), [](float v) { return std::isfinite(v); })) return not_finite(title);
    return values;
}

}  // namespace

Result<TensorPlaces> read_places(const Bytes& start, std::uint64_t file_size) {
    if (start.size() < 8 || file_size < 8) return damaged("it is too short");
    const std::uint64_t length = header_length(start);
    if (length > kMostHeader || length > file_size - 8 || length > start.size() - 8)
        return damaged("its header is longer than the file, or than " + std::to_string(kMostHeader) + " bytes");
    const std::string_view text(reinterpret_cast<const char*>(start.data()) + 8, static_cast<std::size_t>(length));
    if (!is_shallow(text)) return damaged("its header is nested too deeply");
    const Json header = Json::parse(text.begin(), text.end(), nullptr, false);
    if (!header.is_object()) return damaged("its header is no JSON object");
    TensorPlaces places;
    for (const auto& [name, entry] : header.items()) {
        if (name == "__metadata__") continue;
        Result<TensorPlace> place = read_place(name, entry);
        if (!place) return place.error();
        places.emplace(name, std::move(*place));
    }
    const std::uint64_t base = 8 + length;
    if (Status covered = check_cover(places, file_size - base); !covered) return covered.error();
    for (auto& [name, place] : places) place.offset += base;
    return places;
}

Result<Tensors> Tensors::parse(Bytes data, std::string name) {
    Result<TensorPlaces> places = read_places(data, data.size());
    if (!places) return Error{Code::bad_bundle, name + " cannot be read. " + places.error().what, ""};
    Tensors result;
    result.places_ = std::move(*places);
    result.data_ = std::move(data);
    result.name_ = std::move(name);
    return result;
}

std::uint64_t Tensors::size(std::string_view name, std::size_t axis) const {
    const auto found = places_.find(name);
    return found == places_.end() || axis >= found->second.shape.size() ? 0 : found->second.shape[axis];
}

Result<std::vector<float>> Tensors::floats(std::string_view name, const std::vector<std::uint64_t>& shape) const {
    Result<const TensorPlace*> place = find(places_, name_, name, shape);
    if (!place) return place.error();
    return decode(data_.data() + (*place)->offset, **place, name_ + ": " + std::string(name));
}

Result<Matrix> Tensors::matrix(std::string_view name, std::uint64_t rows, std::uint64_t width) const {
    const auto held = places_.find(name);
    const std::string dtype = held == places_.end() ? "" : held->second.dtype;
    const bool in_pairs = dtype == "U8";
    if (!in_pairs && dtype != "I8") {
        Result<std::vector<float>> values = floats(name, {rows, width});
        if (!values) return values.error();
        return Matrix{std::move(*values), {}, {}};
    }
    const std::uint64_t columns = in_pairs ? width / 2 + width % 2 : width;
    Result<const TensorPlace*> place = find(places_, name_, name, {rows, columns});
    if (!place) return place.error();
    Result<std::vector<float>> scales = floats(std::string(name) + "_scale", {rows, groups(width)});
    if (!scales) return scales.error();
    const std::uint8_t* const bytes = data_.data() + (*place)->offset;
    Matrix matrix{{}, std::vector<std::int8_t>(static_cast<std::size_t>(rows * width)), std::move(*scales)};
    for (std::size_t row = 0, at = 0; at < matrix.codes.size(); ++row)
        for (std::size_t i = 0; i < width; ++i, ++at) {
            const std::uint8_t byte = bytes[row * columns + (in_pairs ? i / 2 : i)];
            const int code = in_pairs ? (i % 2 ? byte >> 4 : byte & 15) - 8 : static_cast<std::int8_t>(byte);
            if (!std::isfinite(static_cast<float>(code) * matrix.scales[row * groups(width) + i / kGroup]))
                return not_finite(name_ + ": " + std::string(name));
            matrix.codes[at] = static_cast<std::int8_t>(code);
        }
    return matrix;
}

Result<std::vector<std::int64_t>> Tensors::integers(std::string_view name, std::uint64_t count) const {
    Result<const TensorPlace*> found = find(places_, name_, name, {count});
    if (!found) return found.error();
    const TensorPlace& place = **found;
    if (place.dtype != "I64")
        return Error{Code::bad_bundle, name_ + ": " + std::string(name) + " is " + place.dtype + ", not I64.", ""};
    std::vector<std::int64_t> values(static_cast<std::size_t>(place.size / 8));
    if (!values.empty()) std::memcpy(values.data(), data_.data() + place.offset, static_cast<std::size_t>(place.size));
    return values;
}

Result<TensorFile> TensorFile::open(const std::string& path) {
    Result<File> file = File::open(path);
    if (!file) return file.error();
    TensorFile result(std::move(*file));
    result.path_ = path;
    Bytes start(8);
    Result<std::size_t> count = result.file_.read_at(0, start.data(), start.size());
    if (!count) return count.error();
    const std::uint64_t length = header_length(start);
    if (*count == 8 && length <= kMostHeader) {
        start.resize(static_cast<std::size_t>(8 + length));
        count = result.file_.read_at(0, start.data(), start.size());
        if (!count) return count.error();
    }
    start.resize(*count);
    Result<TensorPlaces> places = read_places(start, result.file_.size());
    if (!places) return Error{Code::bad_bundle, path + " cannot be read. " + places.error().what, ""};
    result.places_ = std::move(*places);
    return result;
}

Result<std::vector<float>> TensorFile::floats(std::string_view name, const std::vector<std::uint64_t>& shape) {
    Result<const TensorPlace*> found = find(places_, path_, name, shape);
    if (!found) return found.error();
    const TensorPlace& place = **found;
    Bytes bytes(static_cast<std::size_t>(place.size));
    Result<std::size_t> count = file_.read_at(place.offset, bytes.data(), bytes.size());
    if (!count) return count.error();
    if (*count != bytes.size()) return Error{Code::bad_bundle, path_ + " was cut short while it was read.", ""};
    return decode(bytes.data(), place, path_ + ": " + std::string(name));
}

}  // namespace edge_cl
