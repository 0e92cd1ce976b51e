/* The C API's header must be plain C. */
#include "edge_cl/edge_cl.h"

int edge_cl_header_check(void);

int edge_cl_header_check(void) {
    edge_cl_frame frame = EDGE_CL_FRAME_INIT;
    edge_cl_options options = EDGE_CL_OPTIONS_INIT;
    return frame.struct_size == sizeof frame && options.struct_size == sizeof options;
}
