"""One module a dialect: each turns requests into decisions made elsewhere, and their outcome into an answer."""
