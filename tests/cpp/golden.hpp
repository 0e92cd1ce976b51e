// Reading golden vectors, and copies of golden bundles that a test may change.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "file.hpp"
#include "onnx_backend.hpp"
#include "safetensors.hpp"

namespace edge_cl::test {

inline std::string golden(const std::string& name) { return std::string(EDGE_CL_GOLDEN) + "/" + name; }

/// A file of golden vectors.
class Golden {
public:
    explicit Golden(const std::string& name) {
        data_ = read_file(golden(name + ".safetensors"), 1 << 26).value();
        places_ = read_places(data_, data_.size()).value();
    }

    /// Return a tensor's elements.
    template <class T>
    std::vector<T> get(const std::string& name) const {
        const TensorPlace& place = places_.at(name);
        std::vector<T> values(static_cast<std::size_t>(place.size) / sizeof(T));
        if (!values.empty())
            std::memcpy(values.data(), data_.data() + place.offset, static_cast<std::size_t>(place.size));
        return values;
    }

    std::size_t size(const std::string& name, std::size_t axis) const {
        return static_cast<std::size_t>(places_.at(name).shape.at(axis));
    }

    const TensorPlaces& places() const { return places_; }

private:
    Bytes data_;
    TensorPlaces places_;
};

/// A directory that goes with the object.
class Scratch {
public:
    Scratch() {
        std::string pattern = (std::filesystem::temp_directory_path() / "edge_cl_XXXXXX").string();
        if (::mkdtemp(pattern.data()) == nullptr) std::abort();
        path_ = pattern;
    }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    ~Scratch() {
        std::error_code ignored;
        std::filesystem::remove_all(path_, ignored);
    }

    const std::filesystem::path& path() const { return path_; }

    /// Copy a golden bundle here.
    std::string bundle(const std::string& name) const {
        const std::filesystem::path copy = path_ / name;
        std::filesystem::copy(golden(name), copy, std::filesystem::copy_options::recursive);
        return copy.string();
    }

private:
    std::filesystem::path path_;
};

inline std::string read_text(const std::filesystem::path& path) {
    std::ifstream file(path, std::ios::binary);
    std::ostringstream text;
    text << file.rdbuf();
    return text.str();
}

inline void write_text(const std::filesystem::path& path, const std::string& text) {
    std::ofstream(path, std::ios::binary | std::ios::trunc) << text;
}

/// Replace the first occurrence of a text, which must be there.
inline std::string replaced(std::string text, const std::string& from, const std::string& to) {
    const std::size_t at = text.find(from);
    EXPECT_NE(at, std::string::npos) << from;
    return at == std::string::npos ? text : text.replace(at, from.size(), to);
}

/// Why there is no ONNX Runtime for a test; empty: there is.
std::string missing_onnxruntime();

}  // namespace edge_cl::test

/// Skip a test that runs graphs where nothing can.
#define EDGE_CL_NEEDS_ONNXRUNTIME()                                                        \
    if (const std::string why = edge_cl::test::missing_onnxruntime(); !why.empty()) GTEST_SKIP() << why
