// Errors as values: no function of this library throws.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <variant>

#include "edge_cl/export.h"

namespace edge_cl {

/// What kind of error it is; the numbers are those of the C API and never change.
enum class Code : int {
    ok = 0,
    no_bundle = 1,   ///< there is no bundle at the path
    bad_bundle = 2,  ///< it is damaged, altered, or of another format
    no_backend = 3,  ///< what should run the graphs is not installed, or too old
    backend = 4,     ///< what runs the graphs refuses, or what it gives are no numbers
    bad_frame = 5,   ///< a frame of impossible size or format
    bad_option = 6,  ///< an option or argument that cannot be
    timeout = 7,     ///< the answer took longer than was allowed
    memory = 8,      ///< no memory left
    internal = 9,    ///< a fault of this library
};

/// What went wrong, and the one command or change that mends it.
struct EDGE_CL_API Error {
    Code code = Code::internal;
    std::string what;
    std::string mend;

    /// Return both in one text.
    std::string message() const { return mend.empty() ? what : what + " " + mend; }
};

/// A value, or why there is none.
template <class T>
class [[nodiscard]] Result {
public:
    Result(T value) : held_(std::in_place_index<0>, std::move(value)) {}
    Result(Error error) : held_(std::in_place_index<1>, std::move(error)) {}

    explicit operator bool() const noexcept { return held_.index() == 0; }

    /// The value; only where there is one.
    T& value() { return std::get<0>(held_); }
    const T& value() const { return std::get<0>(held_); }
    T& operator*() { return value(); }
    const T& operator*() const { return value(); }
    T* operator->() { return &value(); }
    const T* operator->() const { return &value(); }

    /// The error; only where there is no value.
    Error& error() { return std::get<1>(held_); }
    const Error& error() const { return std::get<1>(held_); }

private:
    std::variant<T, Error> held_;
};

/// Done, or why not.
class [[nodiscard]] Status {
public:
    Status() = default;
    Status(Error error) : error_(std::move(error)) {}

    explicit operator bool() const noexcept { return !error_.has_value(); }

    /// The error; only where it was not done.
    Error& error() { return *error_; }
    const Error& error() const { return *error_; }

private:
    std::optional<Error> error_;
};

}  // namespace edge_cl
