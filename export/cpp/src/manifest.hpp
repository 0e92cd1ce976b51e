// The manifest of a bundle: what it holds, read and validated.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "edge_cl/result.hpp"
#include "preprocess.hpp"

namespace edge_cl {

constexpr int kFormat = 1;
constexpr const char* kManifest = "manifest.json";
constexpr std::size_t kMostManifest = 8U << 20;  ///< bytes
constexpr std::int64_t kBase = -1;               ///< stands for the base branch among task numbers

/// One file: its name, and the SHA-256 and number of its bytes.
struct FileRef {
    std::string name;
    std::string sha256;
    std::uint64_t size = 0;

    bool operator==(const FileRef& other) const {
        return name == other.name && sha256 == other.sha256 && size == other.size;
    }
};

/// Numbers that all tensors of a bundle agree with.
struct Shape {
    std::size_t depth = 0;      ///< blocks of the backbone
    std::size_t split = 0;      ///< blocks of the prefix
    std::size_t width = 0;      ///< D
    std::size_t tokens = 0;     ///< N, of a picture
    std::size_t summaries = 0;  ///< S, summary vectors a block
    std::size_t r = 0;          ///< largest rank of an adapter

    std::size_t features() const { return depth * summaries * width; }
    std::size_t prefix_features() const { return split * summaries * width; }
    std::size_t suffix_features() const { return features() - prefix_features(); }
};

/// A class: permanent id, name, and the number of the task that taught it.
struct BundleClass {
    std::int64_t id = 0;
    std::string name;
    std::int64_t task = 0;
};

/// What a bundle holds.
struct Manifest {
    bool shared = true;  ///< layout: LoRA tensors are inputs of one suffix graph; else merged: a graph for every task
    bool half = false;   ///< precision of the graphs: fp16; else fp32
    std::int64_t version = 0;
    Shape shape;
    Preprocess preprocess;
    std::vector<BundleClass> classes;  ///< in the order of the head's rows
    double temperature = 1;
    double threshold = 0;    ///< infinity: nothing is too far
    double least_score = 0;  ///< minus infinity: nothing is too unlikely
    std::map<std::string, FileRef, std::less<>> files;  ///< by role
    std::string sha256;                                 ///< of the manifest's value

    bool has(std::string_view role) const { return files.find(role) != files.end(); }

    /// Tasks that still have a class, in rising order.
    std::vector<std::int64_t> tasks() const;
};

/// Read a manifest's bytes. The error says what is wrong, without the path.
Result<Manifest> parse_manifest(std::string_view data);

/// Return an argument as a shell takes it for one.
std::string shell_quoted(const std::string& argument);

/// Return the command that makes a bundle.
std::string export_command(const std::string& bundle);

/// Read a bundle's manifest.
Result<Manifest> read_manifest(const std::string& bundle);

/// What tells one writing of a manifest from every other, those of the same content included: inode and time.
using Publication = std::array<std::int64_t, 3>;

/// Return that of a bundle's manifest; zeros if there is none.
Publication publication_of(const std::string& bundle);

}  // namespace edge_cl
