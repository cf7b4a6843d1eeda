/* The application descriptor that boot loader and update clients read at offset 32 of the image: 256 bytes.
 * Layout: docs/reference/esp-image.md. */
#pragma once

#include <stdint.h>

#define APP_DESC_MAGIC 0xABCD5432u

typedef struct {
    uint32_t magic;
    uint32_t secure_version; /* anti-rollback counter */
    uint32_t reserved1[2];
    char version[32];
    char project_name[32];
    char time[16];
    char date[16];
    char idf_ver[32];
    uint8_t app_elf_sha256[32]; /* filled in when the image is packed */
    uint16_t min_efuse_blk_rev_full;
    uint16_t max_efuse_blk_rev_full;
    uint8_t mmu_page_size_log2;
    uint8_t spi_flash_mode;
    uint8_t reserved3[2];
    uint32_t reserved2[18];
} app_desc_t;

_Static_assert(sizeof(app_desc_t) == 256, "the descriptor has 256 bytes");

extern const app_desc_t app_desc;
