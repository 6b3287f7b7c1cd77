// Reads the PTX that nvcc writes (PTX ISA 9.0, sections 4 and 5).
#pragma once

#include <memory>
#include <string>

#include "emulator/ptx/lexer.hpp"
#include "emulator/ptx/syntax.hpp"

namespace abyssal::emulator::ptx {

// Throws PtxError for what is not PTX and for what this emulator does not read: functions that
// are not inlined, vector and array registers, textures. Instructions are not judged here.
std::unique_ptr<const Module> parse(std::string text);

}  // namespace abyssal::emulator::ptx
