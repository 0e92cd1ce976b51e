/* The C API of edge-cl: for C, and for every language that can call C.
 *
 * Functions return EDGE_CL_OK or the number of an error; edge_cl_last_error() says what it was, for the calling thread.
 * Nothing is thrown, and no pointer that is given is kept after a call. Structures begin with their own size, so that a
 * program built today runs with later versions of the library: set it with EDGE_CL_FRAME_INIT and EDGE_CL_OPTIONS_INIT.
 */
#ifndef EDGE_CL_EDGE_CL_H
#define EDGE_CL_EDGE_CL_H

#include <stddef.h>
#include <stdint.h>

#include "edge_cl/export.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Kinds of errors; the numbers never change. */
enum {
    EDGE_CL_OK = 0,
    EDGE_CL_NO_BUNDLE = 1,  /* there is no bundle at the path */
    EDGE_CL_BAD_BUNDLE = 2, /* it is damaged, altered, or of another format */
    EDGE_CL_NO_BACKEND = 3, /* what should run the graphs is not installed, or too old */
    EDGE_CL_BACKEND = 4,    /* what runs the graphs refuses, or what it gives are no numbers */
    EDGE_CL_BAD_FRAME = 5,  /* a frame of impossible size or format */
    EDGE_CL_BAD_OPTION = 6, /* an option or argument that cannot be */
    EDGE_CL_TIMEOUT = 7,    /* the answer took longer than was allowed */
    EDGE_CL_MEMORY = 8,     /* no memory left */
    EDGE_CL_INTERNAL = 9    /* a fault of this library */
};

/* How pixels lie in memory. */
enum {
    EDGE_CL_RGB8 = 0,
    EDGE_CL_BGR8 = 1,
    EDGE_CL_RGBA8 = 2,
    EDGE_CL_BGRA8 = 3,
    EDGE_CL_GREY8 = 4,
    EDGE_CL_NV12 = 5,
    EDGE_CL_YUYV = 6
};

/* How YUV becomes RGB. */
enum { EDGE_CL_BT601 = 0, EDGE_CL_BT709 = 1, EDGE_CL_BT601_FULL = 2 };

typedef struct edge_cl_classifier edge_cl_classifier;
typedef struct edge_cl_predictions edge_cl_predictions;

/* How a classifier works; 0 and NULL stand for the default. */
typedef struct edge_cl_options {
    size_t struct_size;
    const char* backend;     /* "auto", "onnxruntime" or "tensorrt" */
    const char* rule;        /* "routed" or "base" */
    int32_t threads;         /* CPU threads of ONNX Runtime; 0: as many as there are cores */
    int32_t top;             /* how many classes a prediction lists; 0: 5 */
    int64_t timeout_ms;      /* longest that a call may take; 0: no limit */
    const char* onnxruntime; /* path of ONNX Runtime's library */
    const char* tensorrt;    /* path of TensorRT's library */
    const char* engines;     /* directory of engines */
    int32_t unknown_score;   /* 1: answers have their edge_cl_unknown_score, at 0.04 to 0.1 ms more a frame */
} edge_cl_options;

#define EDGE_CL_OPTIONS_INIT {sizeof(edge_cl_options), NULL, NULL, 0, 0, 0, NULL, NULL, NULL, 0}

/* One frame of a camera. */
typedef struct edge_cl_frame {
    size_t struct_size;
    const uint8_t* data;
    size_t size_bytes; /* of the memory at data, which is checked to hold the frame; 0: not known */
    int32_t width;     /* pixels */
    int32_t height;    /* pixels */
    size_t stride;     /* bytes from one row to the next; 0: rows follow each other without a gap */
    int32_t format;    /* EDGE_CL_RGB8... */
    int32_t range;     /* EDGE_CL_BT601...; of YUV formats */
    const uint8_t* chroma; /* NV12's second plane; NULL: it follows the first */
    size_t chroma_stride;  /* of that plane; 0: as stride */
} edge_cl_frame;

#define EDGE_CL_FRAME_INIT {sizeof(edge_cl_frame), NULL, 0, 0, 0, 0, EDGE_CL_RGB8, EDGE_CL_BT601, NULL, 0}

/* Version of the library, "0.1.0". */
EDGE_CL_API const char* edge_cl_version(void);

/* What was wrong with the calling thread's last failed call; valid until its next one. */
EDGE_CL_API const char* edge_cl_last_error(void);

/* Open a bundle; every file of it is verified. options may be NULL. */
EDGE_CL_API int edge_cl_open(const char* bundle, const edge_cl_options* options, edge_cl_classifier** out);

/* Close a classifier; NULL is allowed. No call on it may be running. */
EDGE_CL_API void edge_cl_close(edge_cl_classifier* classifier);

/* Make room for answers; it is used again by every call that it is given to. One thread at a time. */
EDGE_CL_API int edge_cl_predictions_new(edge_cl_predictions** out);
EDGE_CL_API void edge_cl_predictions_free(edge_cl_predictions* predictions);

/* Answer for `count` frames. May be called from several threads, each with predictions of its own. */
EDGE_CL_API int edge_cl_predict(const edge_cl_classifier* classifier, const edge_cl_frame* frames, size_t count,
                                edge_cl_predictions* out);

/* The answers of the last call; none if it failed. Texts are valid until the next call with these predictions.
 * An index that is too large gives NULL or 0. */
EDGE_CL_API size_t edge_cl_predictions_count(const edge_cl_predictions* predictions);
EDGE_CL_API const char* edge_cl_label(const edge_cl_predictions* predictions, size_t frame);
EDGE_CL_API float edge_cl_confidence(const edge_cl_predictions* predictions, size_t frame);
EDGE_CL_API int edge_cl_unknown(const edge_cl_predictions* predictions, size_t frame);
/* How unlike all that is known: above 1 is unknown. Not a number, if the options did not ask for it. */
EDGE_CL_API float edge_cl_unknown_score(const edge_cl_predictions* predictions, size_t frame);
EDGE_CL_API int64_t edge_cl_predicted_version(const edge_cl_predictions* predictions, size_t frame);
EDGE_CL_API size_t edge_cl_top_count(const edge_cl_predictions* predictions, size_t frame);
EDGE_CL_API const char* edge_cl_top_label(const edge_cl_predictions* predictions, size_t frame, size_t place);
EDGE_CL_API float edge_cl_top_confidence(const edge_cl_predictions* predictions, size_t frame, size_t place);

/* Put the bundle's present version in force, if it is another; `changed` (or NULL) is told whether it was.
 * May be called from another thread while frames are answered. On an error the version in force stays. */
EDGE_CL_API int edge_cl_reload(edge_cl_classifier* classifier, int* changed);

/* The store's version that answers. */
EDGE_CL_API int64_t edge_cl_bundle_version(const edge_cl_classifier* classifier);

#ifdef __cplusplus
}
#endif

#endif
