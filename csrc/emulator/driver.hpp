// The driver table, filled by the emulator: the host code that launches kernels on a GPU launches
// them here.
//
// There is one device. Its memory is the host's; launches run to their end before the call
// returns, unless the thread collects a group of them. What a kernel does wrong is thrown as
// EmulatorError.
#pragma once

#include <functional>

#include "emulator/machine.hpp"
#include "runtime/driver.hpp"

namespace abyssal::emulator {

const Driver& emulated_driver();

// For the launches that follow, of all threads.
void set_driver_options(const Options& options);

// Calls run(interrupted), where interrupted() is asked now and then and may throw: what is around a
// launch in a language with locks and signals of its own.
using Run = std::function<void(void (*interrupted)())>;
void set_driver_surroundings(void (*surroundings)(const Run& run));

}  // namespace abyssal::emulator
