# Finds ONNX Runtime: OnnxRuntime_INCLUDE_DIR (needed to build) and OnnxRuntime_LIBRARY (opened at run time).
# Hints: ONNXRUNTIME_ROOT, as a variable or in the environment: an unpacked release, or a prefix. A library inside the
# Python package onnxruntime is found too.
set(hints ${ONNXRUNTIME_ROOT} $ENV{ONNXRUNTIME_ROOT} ${PROJECT_SOURCE_DIR}/build/onnxruntime/usr)
find_path(OnnxRuntime_INCLUDE_DIR onnxruntime_c_api.h HINTS ${hints}
  PATH_SUFFIXES include include/onnxruntime onnxruntime include/onnxruntime/core/session core/session)
find_library(OnnxRuntime_LIBRARY NAMES onnxruntime libonnxruntime.so.1 HINTS ${hints} PATH_SUFFIXES lib lib64)
if(NOT OnnxRuntime_LIBRARY AND NOT CMAKE_CROSSCOMPILING)
  foreach(python ${PROJECT_SOURCE_DIR}/.venv/bin/python python3)
    execute_process(
      COMMAND ${python} -c "import glob, importlib.util as u
s = u.find_spec('onnxruntime')
print(*glob.glob(s.submodule_search_locations[0] + '/capi/libonnxruntime.so.*') if s else [], sep=';', end='')"
      OUTPUT_VARIABLE found ERROR_QUIET RESULT_VARIABLE failed)
    if(NOT failed AND found)
      list(GET found 0 first)
      set(OnnxRuntime_LIBRARY ${first} CACHE FILEPATH "ONNX Runtime's library" FORCE)
      break()
    endif()
  endforeach()
endif()
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(OnnxRuntime REQUIRED_VARS OnnxRuntime_INCLUDE_DIR)
mark_as_advanced(OnnxRuntime_INCLUDE_DIR OnnxRuntime_LIBRARY)
