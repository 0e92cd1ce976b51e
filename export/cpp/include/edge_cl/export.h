/* Marks what the shared library offers; everything else in it is hidden. */
#ifndef EDGE_CL_EXPORT_H
#define EDGE_CL_EXPORT_H

#if defined(__GNUC__) || defined(__clang__)
#define EDGE_CL_API __attribute__((visibility("default")))
#else
#define EDGE_CL_API
#endif

#endif
