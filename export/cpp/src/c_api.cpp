#include <cstddef>
#include <cstring>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "edge_cl/classifier.hpp"
#include "edge_cl/edge_cl.h"

struct edge_cl_classifier {
    edge_cl::Classifier classifier;
};

struct edge_cl_predictions {
    std::vector<edge_cl::Frame> frames;
    std::vector<edge_cl::Prediction> answers;
    std::size_t count = 0;
};

namespace {

thread_local std::string last_error;

int fail(edge_cl::Code code, const char* text) noexcept {
    try {
        last_error = text;
    } catch (...) {
        last_error.clear();
    }
    return static_cast<int>(code);
}

int fail(const edge_cl::Error& error) noexcept {
    try {
        return fail(error.code, error.message().c_str());
    } catch (...) {
        return fail(error.code, "");
    }
}

// Runs what may throw.
template <class Work>
int guarded(Work work) noexcept {
    try {
        return work();
    } catch (const std::bad_alloc&) {
        return fail(edge_cl::Code::memory, "No memory is left.");
    } catch (...) {
        return fail(edge_cl::Code::internal, "A fault of edge-cl.");
    }
}

std::string text(const char* given, const char* otherwise = "") { return given != nullptr ? given : otherwise; }

// Copies a caller's structure, which may be older and shorter than ours.
template <class T>
bool take(const void* given, T& whole) {
    std::size_t size = 0;
    std::memcpy(&size, given, sizeof size);
    if (size < sizeof size || size > 4096) return false;
    std::memcpy(&whole, given, size < sizeof whole ? size : sizeof whole);
    return true;
}

edge_cl::Frame frame_of(const edge_cl_frame& given) {
    edge_cl::Frame frame;
    frame.data = given.data;
    frame.size_bytes = given.size_bytes;
    frame.width = given.width;
    frame.height = given.height;
    frame.stride = given.stride;
    frame.format = static_cast<edge_cl::PixelFormat>(given.format);
    frame.range = static_cast<edge_cl::YuvRange>(given.range);
    frame.chroma = given.chroma;
    frame.chroma_stride = given.chroma_stride;
    return frame;
}

const edge_cl::Prediction* answer(const edge_cl_predictions* predictions, std::size_t frame) {
    return predictions != nullptr && frame < predictions->count ? &predictions->answers[frame] : nullptr;
}

const edge_cl::Candidate* candidate(const edge_cl_predictions* predictions, std::size_t frame, std::size_t place) {
    const edge_cl::Prediction* const found = answer(predictions, frame);
    return found != nullptr && place < found->top.size() ? &found->top[place] : nullptr;
}

}  // namespace

extern "C" {

const char* edge_cl_version(void) { return EDGE_CL_VERSION; }

const char* edge_cl_last_error(void) { return last_error.c_str(); }

int edge_cl_open(const char* bundle, const edge_cl_options* options, edge_cl_classifier** out) {
    return guarded([&] {
        if (bundle == nullptr || out == nullptr)
            return fail(edge_cl::Code::bad_option, "edge_cl_open needs a path and a place for the classifier.");
        *out = nullptr;
        edge_cl_options given = EDGE_CL_OPTIONS_INIT;
        if (options != nullptr && !take(options, given))
            return fail(edge_cl::Code::bad_option, "struct_size is not set. Begin with EDGE_CL_OPTIONS_INIT.");
        edge_cl::Options wanted;
        wanted.backend = text(given.backend, "auto");
        wanted.rule = text(given.rule, "routed");
        wanted.threads = given.threads;
        wanted.top = given.top == 0 ? wanted.top : given.top;
        wanted.timeout = std::chrono::milliseconds(given.timeout_ms);
        wanted.onnxruntime = text(given.onnxruntime);
        wanted.tensorrt = text(given.tensorrt);
        wanted.engines = text(given.engines);
        wanted.unknown_score = given.unknown_score != 0;
        edge_cl::Result<edge_cl::Classifier> opened = edge_cl::Classifier::open(bundle, wanted);
        if (!opened) return fail(opened.error());
        *out = new edge_cl_classifier{std::move(*opened)};
        return static_cast<int>(EDGE_CL_OK);
    });
}

void edge_cl_close(edge_cl_classifier* classifier) { delete classifier; }

int edge_cl_predictions_new(edge_cl_predictions** out) {
    return guarded([&] {
        if (out == nullptr) return fail(edge_cl::Code::bad_option, "edge_cl_predictions_new needs a place.");
        *out = new edge_cl_predictions;
        return static_cast<int>(EDGE_CL_OK);
    });
}

void edge_cl_predictions_free(edge_cl_predictions* predictions) { delete predictions; }

int edge_cl_predict(const edge_cl_classifier* classifier, const edge_cl_frame* frames, size_t count,
                    edge_cl_predictions* out) {
    return guarded([&] {
        if (out != nullptr) out->count = 0;
        if (classifier == nullptr || out == nullptr || (frames == nullptr && count > 0))
            return fail(edge_cl::Code::bad_option, "edge_cl_predict needs a classifier, frames and predictions.");
        if (out->frames.size() < count) out->frames.resize(count);
        if (out->answers.size() < count) out->answers.resize(count);
        const char* place = reinterpret_cast<const char*>(frames);
        for (std::size_t i = 0; i < count; ++i) {
            edge_cl_frame given = EDGE_CL_FRAME_INIT;
            if (!take(place, given))
                return fail(edge_cl::Code::bad_frame, "struct_size is not set. Begin with EDGE_CL_FRAME_INIT.");
            place += given.struct_size;  // the distance between the caller's structures
            out->frames[i] = frame_of(given);
        }
        edge_cl::Status done = classifier->classifier.predict(out->frames.data(), count, out->answers.data());
        if (!done) return fail(done.error());
        out->count = count;
        return static_cast<int>(EDGE_CL_OK);
    });
}

size_t edge_cl_predictions_count(const edge_cl_predictions* predictions) {
    return predictions != nullptr ? predictions->count : 0;
}

const char* edge_cl_label(const edge_cl_predictions* predictions, size_t frame) {
    const edge_cl::Prediction* const found = answer(predictions, frame);
    return found != nullptr ? found->label.c_str() : nullptr;
}

float edge_cl_confidence(const edge_cl_predictions* predictions, size_t frame) {
    const edge_cl::Prediction* const found = answer(predictions, frame);
    return found != nullptr ? found->confidence : 0.0F;
}

int edge_cl_unknown(const edge_cl_predictions* predictions, size_t frame) {
    const edge_cl::Prediction* const found = answer(predictions, frame);
    return found != nullptr && found->unknown ? 1 : 0;
}

float edge_cl_unknown_score(const edge_cl_predictions* predictions, size_t frame) {
    const edge_cl::Prediction* const found = answer(predictions, frame);
    return found != nullptr ? found->unknown_score : 0.0F;
}

int64_t edge_cl_predicted_version(const edge_cl_predictions* predictions, size_t frame) {
    const edge_cl::Prediction* const found = answer(predictions, frame);
    return found != nullptr ? found->version : 0;
}

size_t edge_cl_top_count(const edge_cl_predictions* predictions, size_t frame) {
    const edge_cl::Prediction* const found = answer(predictions, frame);
    return found != nullptr ? found->top.size() : 0;
}

const char* edge_cl_top_label(const edge_cl_predictions* predictions, size_t frame, size_t place) {
    const edge_cl::Candidate* const found = candidate(predictions, frame, place);
    return found != nullptr ? found->label.c_str() : nullptr;
}

float edge_cl_top_confidence(const edge_cl_predictions* predictions, size_t frame, size_t place) {
    const edge_cl::Candidate* const found = candidate(predictions, frame, place);
    return found != nullptr ? found->confidence : 0.0F;
}

int edge_cl_reload(edge_cl_classifier* classifier, int* changed) {
    return guarded([&] {
        if (classifier == nullptr) return fail(edge_cl::Code::bad_option, "edge_cl_reload needs a classifier.");
        edge_cl::Result<bool> done = classifier->classifier.reload();
        if (changed != nullptr) *changed = done && *done ? 1 : 0;
        return done ? static_cast<int>(EDGE_CL_OK) : fail(done.error());
    });
}

int64_t edge_cl_bundle_version(const edge_cl_classifier* classifier) {
    return classifier != nullptr ? classifier->classifier.version() : -1;
}

}  // extern "C"
