/* What a product replaces. The sample's own versions are in hooks.c and are weak. */
#pragma once

#include <stdbool.h>

/* The self-test has passed: make this image the one that stays. In an ESP-IDF product this is
 * esp_ota_mark_app_valid_cancel_rollback(). Called once per boot. */
void hook_confirm(void);

/* Whether the device reaches its server. An image that cannot be updated any more must not be confirmed. */
bool hook_network_is_up(void);
