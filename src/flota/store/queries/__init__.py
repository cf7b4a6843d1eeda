"""The queries of one transaction, one module a noun; `store.database` puts them together."""
