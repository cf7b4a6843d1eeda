"""Thin IO shells around the protocol cores; one resumable, verified download for all."""
