#include "json_text.hpp"

namespace edge_cl {
namespace {

bool is_space(char c) { return c == ' ' || c == '\n' || c == '\r' || c == '\t'; }

// Walks over the characters of a JSON text that are no space between its parts.
struct Walk {
    std::string_view json;
    std::size_t at = 0;
    std::size_t depth = 0;
    bool in_text = false;
    bool escaped = false;

    // Move to the next such character; false at the end.
    bool next(char& c) {
        while (at < json.size()) {
            c = json[at++];
            if (in_text) {
                if (escaped)
                    escaped = false;
                else if (c == '\\')
                    escaped = true;
                else if (c == '"')
                    in_text = false;
                return true;
            }
            if (is_space(c)) continue;
            if (c == '"') in_text = true;
            if (c == '{' || c == '[') ++depth;
            if ((c == '}' || c == ']') && depth > 0) --depth;
            return true;
        }
        return false;
    }
};

}  // namespace

std::optional<std::string> compact_member(std::string_view json, std::string_view key) {
    const std::string wanted = '"' + std::string(key) + "\":";
    Walk walk{json};
    std::string found, latest;  // the member's text, and what came since the last part of the outer object
    bool inside = false;
    for (char c = 0; walk.next(c);) {
        const bool outer = walk.depth == 1 && !walk.in_text;
        if (inside) {
            if ((outer && c == ',') || walk.depth == 0) return found;
            found += c;
        } else if (outer && (c == ',' || c == '{')) {
            latest.clear();
        } else if (walk.depth == 1) {
            if (latest.size() < wanted.size()) latest += c;
            inside = c == ':' && latest == wanted && outer;
        } else {
            latest.assign(wanted.size(), ' ');  // what is deeper is no key of the outer object
        }
    }
    return std::nullopt;
}

bool is_shallow(std::string_view json) {
    Walk walk{json};
    for (char c = 0; walk.next(c);)
        if (walk.depth > kJsonDepth) return false;
    return true;
}

}  // namespace edge_cl
