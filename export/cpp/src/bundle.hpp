// A bundle on disk, opened: every file of it verified.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "edge_cl/result.hpp"
#include "head.hpp"
#include "manifest.hpp"
#include "safetensors.hpp"

namespace edge_cl {

/// Joint factors of an adapter over L blocks: down (L, 2r, D) and up (L, 3D, 2r).
struct Factors {
    std::vector<float> down;
    std::vector<float> up;
};

/// An opened bundle.
class Bundle {
public:
    /// Open a bundle; one that is being updated is read as it was or as it will be.
    ///
    /// @param known the same bundle as it was opened before, or nullptr; its unchanged files are not verified again.
    static Result<Bundle> open(const std::string& path, const Bundle* known = nullptr);

    const std::string& path() const { return path_; }
    const Manifest& manifest() const { return manifest_; }

    /// Return the path of a file by role.
    Result<std::string> file(const std::string& role) const;

    /// Read the tensors of a file.
    Result<Tensors> tensors(const std::string& role) const;

    /// Read an adapter; one of smaller rank than the bundle's is filled up with zeros.
    Result<Factors> factors(const std::string& role) const;

    /// Read the adapters of the suffix by task, `kBase` for the base branch; none where nothing was adapted.
    Result<std::map<std::int64_t, Factors>> adapters() const;

    /// Read the prefix's fused projections (D, 3D) with the shared adapter merged in, by the weights' names.
    Result<std::map<std::string, std::vector<float>>> merged_projections() const;

    /// Read the head.
    Result<Head> head() const;

private:
    /// Read a head of so many features, nothing fitted in it, from the tensors of a role.
    Result<Head> bare_head(const std::string& role, std::uint64_t features, const Tensors& tensors) const;
    Result<Exit> exit() const;
    Result<Quadratic> quadratic() const;
    Result<Branch> branch(std::int64_t task) const;
    Error advise(Error error) const;

    std::string path_;
    Manifest manifest_;
};

/// Return joint factors of A (L, 2, rank, D) and B (L, 2, D, rank): query rows, key rows (zero), value rows.
Factors joint_factors(const std::vector<float>& a, const std::vector<float>& b, std::size_t depth, std::size_t rank,
                      std::size_t width, std::size_t r);

/// Return what is wrong with a file of a bundle: nothing if it is whole.
Status check_file(const std::string& bundle, const FileRef& ref);

}  // namespace edge_cl
