"""The tests, as a package of their own: another installed package of this name must not hide them."""
