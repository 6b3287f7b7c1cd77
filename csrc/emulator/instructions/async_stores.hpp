// st.async, which `st` hands over to.
#pragma once

#include "emulator/decoder.hpp"

namespace abyssal::emulator {

// Decodes what follows `st.async`.
void decode_async_store(Decoding& decoding);

}  // namespace abyssal::emulator
