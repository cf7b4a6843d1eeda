"""The OTA agent of AWS's embedded C SDK, mirrored: states, job document, status texts, self-test, and its platform."""
