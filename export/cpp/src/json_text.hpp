// The one spelling of a JSON value that hashes are taken over, made from the text of a file.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

namespace edge_cl {

constexpr std::size_t kJsonDepth = 32;  // deepest nesting that is read

/// Return the text of one member of a JSON object without the spaces between its parts; nothing if there is none.
///
/// The writer sorts keys and spells numbers and text in one way, so taking the spaces out of what it wrote gives
/// exactly the bytes that it hashed. A file that something else has rewritten does not pass, and must not.
/// The text need not be valid JSON; whoever uses its values parses it as well.
std::optional<std::string> compact_member(std::string_view json, std::string_view key);

/// Return whether a JSON text nests no deeper than `kJsonDepth`.
bool is_shallow(std::string_view json);

}  // namespace edge_cl
