"""Where an update lands: virtual devices with faithful flash, boot decisions and update agents."""
