"""Where it fits: declared hardware models, their flash maps and quirks, and the fit check."""
