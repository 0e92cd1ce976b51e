# Installs headers, library, the CMake package edge_cl and edge_cl.pc.
include(CMakePackageConfigHelpers)
set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/edge_cl)
install(DIRECTORY include/edge_cl DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(TARGETS edge_cl EXPORT edge_cl_targets
  LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
  ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR}
  RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(EXPORT edge_cl_targets NAMESPACE edge_cl:: FILE edge_clTargets.cmake DESTINATION ${package_dir})
configure_package_config_file(cmake/edge_clConfig.cmake.in ${CMAKE_CURRENT_BINARY_DIR}/edge_clConfig.cmake
  INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(${CMAKE_CURRENT_BINARY_DIR}/edge_clConfigVersion.cmake COMPATIBILITY SameMajorVersion)
# From the place of edge_cl.pc, so that it holds wherever `cmake --install --prefix` or a package puts the tree.
file(RELATIVE_PATH prefix_from_pc ${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig ${CMAKE_INSTALL_PREFIX})
file(RELATIVE_PATH libdir_from_prefix ${CMAKE_INSTALL_PREFIX} ${CMAKE_INSTALL_FULL_LIBDIR})
file(RELATIVE_PATH includedir_from_prefix ${CMAKE_INSTALL_PREFIX} ${CMAKE_INSTALL_FULL_INCLUDEDIR})
configure_file(cmake/edge_cl.pc.in ${CMAKE_CURRENT_BINARY_DIR}/edge_cl.pc @ONLY)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/edge_clConfig.cmake ${CMAKE_CURRENT_BINARY_DIR}/edge_clConfigVersion.cmake
  DESTINATION ${package_dir})
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/edge_cl.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
