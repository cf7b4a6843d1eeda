/* CRC-32 as in zlib and IEEE 802.3: reflected polynomial 0xEDB88320, initial value and final XOR all ones. */
#pragma once

#include <stddef.h>
#include <stdint.h>

/* Continue from `crc` (0 to start) over `size` bytes at `data`. */
uint32_t crc32_of(uint32_t crc, const void *data, size_t size);
