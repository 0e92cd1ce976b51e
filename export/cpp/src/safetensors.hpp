// Reading safetensors: an 8-byte length, a JSON header, and the tensors' bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "edge_cl/result.hpp"
#include "file.hpp"
#include "matrix.hpp"

namespace edge_cl {

/// Where a tensor lies in a file.
struct TensorPlace {
    std::string dtype;                ///< "F32", "F16", "I8", "I64"...
    std::vector<std::uint64_t> shape;
    std::uint64_t offset = 0;         ///< bytes from the file's beginning
    std::uint64_t size = 0;           ///< bytes
};

using TensorPlaces = std::map<std::string, TensorPlace, std::less<>>;

/// Read the header of a file.
///
/// @param start the file's first bytes: the header at least; what is missing of it is an error.
/// @param file_size bytes of the whole file; the tensors must fill what follows the header, without gaps.
Result<TensorPlaces> read_places(const Bytes& start, std::uint64_t file_size);

/// Tensors of one file, in memory.
class Tensors {
public:
    /// Take the bytes of a file. `name` is what errors call it.
    static Result<Tensors> parse(Bytes data, std::string name);

    bool has(std::string_view name) const { return places_.find(name) != places_.end(); }

    /// Return a tensor's size along one axis, 0 where there is no such tensor or axis.
    std::uint64_t size(std::string_view name, std::size_t axis) const;

    /// Return a tensor's elements in single precision; the shape must be as given, the values finite.
    Result<std::vector<float>> floats(std::string_view name, const std::vector<std::uint64_t>& shape) const;

    /// Return a matrix of finite numbers, as `floats` or of few bits: I8, or two numbers of four bits in a U8.
    Result<Matrix> matrix(std::string_view name, std::uint64_t rows, std::uint64_t width) const;

    /// Return the elements of a vector of 64-bit integers.
    Result<std::vector<std::int64_t>> integers(std::string_view name, std::uint64_t count) const;

private:
    Bytes data_;
    TensorPlaces places_;
    std::string name_;
};

/// A file of which single tensors are read, because all of it would take too much memory.
class TensorFile {
public:
    static Result<TensorFile> open(const std::string& path);

    /// As `Tensors::floats`.
    Result<std::vector<float>> floats(std::string_view name, const std::vector<std::uint64_t>& shape);

private:
    explicit TensorFile(File file) : file_(std::move(file)) {}

    File file_;
    TensorPlaces places_;
    std::string path_;
};

}  // namespace edge_cl
