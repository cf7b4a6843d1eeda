#include "app_desc.h"

/* SAMPLE_VERSION comes from build.sh. Time and date are constants: the same source gives the same bytes. */
const app_desc_t app_desc __attribute__((section(".rodata_desc"), used)) = {
    .magic = APP_DESC_MAGIC,
    .version = SAMPLE_VERSION,
    .project_name = "flota-sample",
    .time = "00:00:00",
    .date = "Jan  1 2026",
    .idf_ver = "none (bare metal)",
    .min_efuse_blk_rev_full = 0,
    .max_efuse_blk_rev_full = 199, /* any 1.x */
    .mmu_page_size_log2 = 16,
};
