# abyssal_embed_kernels(TARGET kernel...): compile csrc/<kernel>.cu to PTX and a cubin, and embed
# both, with ptxas' report, in TARGET as the table that csrc/runtime/kernel_image.hpp declares.
#
# CMake's CUDA language is not used: it checks the compiler against the host's, links a runtime and
# does not give the PTX. An assembly file with .incbin costs nothing at run time.
function(abyssal_embed_kernels target)
  set(assembly "")
  set(declarations "")
  set(table "")
  foreach(kernel ${ARGN})
    cmake_path(GET kernel FILENAME name)
    set(folder "${CMAKE_CURRENT_BINARY_DIR}/kernels")
    set(base "${folder}/${name}")
    set(source "${CMAKE_CURRENT_SOURCE_DIR}/csrc/${kernel}.cu")
    file(MAKE_DIRECTORY "${folder}")
    add_custom_command(
      OUTPUT "${base}.ptx" "${base}.cubin" "${base}.log"
      COMMAND ${Python_EXECUTABLE} "${CMAKE_CURRENT_SOURCE_DIR}/cmake/compile_kernel.py"
              --nvcc "${ABYSSAL_NVCC}" --root "${CMAKE_CURRENT_SOURCE_DIR}" --source "${source}"
              --ptx "${base}.ptx" --cubin "${base}.cubin" --log "${base}.log"
              --depfile "${base}.d"
      DEPENDS "${source}" "${CMAKE_CURRENT_SOURCE_DIR}/cmake/compile_kernel.py"
      DEPFILE "${base}.d"
      COMMENT "Compiling kernel ${kernel}.cu"
      VERBATIM)
    list(APPEND images "${base}.ptx" "${base}.cubin" "${base}.log")
    string(APPEND table "    {\"${name}\"")
    foreach(part cubin ptx log)
      set(symbol "abyssal_${name}_${part}")
      string(APPEND assembly
        ".balign 16\n.global ${symbol}\n.hidden ${symbol}\n${symbol}:\n.incbin \"${base}.${part}\"\n"
        ".global ${symbol}_end\n.hidden ${symbol}_end\n${symbol}_end:\n.byte 0\n")
      string(APPEND declarations "extern const char ${symbol}[], ${symbol}_end[];\n")
      string(APPEND table ", {${symbol}, ${symbol}_end}")
    endforeach()
    string(APPEND table "},\n")
  endforeach()

  set(images_s "${CMAKE_CURRENT_BINARY_DIR}/kernel_images.S")
  set(images_cpp "${CMAKE_CURRENT_BINARY_DIR}/kernel_images.cpp")
  # GENERATE leaves a file alone whose content stays, and reads nothing into @ signs of a folder.
  # The file ends with a note to the linker: this code needs no executable stack.
  file(GENERATE OUTPUT "${images_s}" CONTENT
    ".section .rodata\n${assembly}.section .note.GNU-stack,\"\",%progbits\n")
  file(GENERATE OUTPUT "${images_cpp}" CONTENT
"#include \"runtime/kernel_image.hpp\"
extern \"C\" {
${declarations}}
namespace abyssal {
std::span<const KernelImage> kernel_images() {
  static const std::vector<KernelImage> images = {
${table}  };
  return images;
}
}  // namespace abyssal
")
  set_source_files_properties("${images_s}" PROPERTIES OBJECT_DEPENDS "${images}")
  target_sources(${target} PRIVATE "${images_s}" "${images_cpp}")
endfunction()
