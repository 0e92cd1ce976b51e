# Runs one fuzz target from the golden files as seeds; what it finds lies in WORK.
file(MAKE_DIRECTORY ${WORK}/seeds)
if(NAME STREQUAL "manifest")
  file(GLOB seeds ${GOLDEN}/bundle-*/manifest.json)
else()
  file(GLOB seeds ${GOLDEN}/head.safetensors ${GOLDEN}/bundle-*/adapter-*.safetensors
    ${GOLDEN}/bundle-*/head-*.safetensors ${GOLDEN}/bundle-*/exit-*.safetensors)
endif()
set(number 0)
foreach(seed ${seeds})
  math(EXPR number "${number} + 1")
  configure_file(${seed} ${WORK}/seeds/seed${number} COPYONLY)
endforeach()
execute_process(
  COMMAND ${TARGET} -max_total_time=${SECONDS} -max_len=65536 -timeout=10 -rss_limit_mb=1024 -print_final_stats=1
    -artifact_prefix=${WORK}/ ${WORK}/seeds
  RESULT_VARIABLE failed)
if(failed)
  message(FATAL_ERROR "fuzz_${NAME} found something: see ${WORK}")
endif()
