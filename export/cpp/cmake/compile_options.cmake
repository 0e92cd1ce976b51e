# Warnings, sanitizers and arithmetic that all targets of the project share, as the target edge_cl_options.
add_library(edge_cl_options INTERFACE)
target_compile_options(edge_cl_options INTERFACE
  -Wall -Wextra -Wconversion -Wshadow
  $<$<COMPILE_LANGUAGE:CXX>:-Wnon-virtual-dtor>
  $<$<COMPILE_LANGUAGE:CXX>:-Wold-style-cast>
  -ffp-contract=off) # the weights of resampling must not depend on the processor
if(EDGE_CL_WERROR)
  target_compile_options(edge_cl_options INTERFACE -Werror)
endif()
if(EDGE_CL_SANITIZE)
  target_compile_options(edge_cl_options INTERFACE
    -fsanitize=${EDGE_CL_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
  target_link_options(edge_cl_options INTERFACE -fsanitize=${EDGE_CL_SANITIZE})
endif()
