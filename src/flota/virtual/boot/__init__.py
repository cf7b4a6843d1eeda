"""Boot decisions as values: what a boot loader does with the flash it finds. Pure."""
