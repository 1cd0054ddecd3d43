"""Whether a model keeps to muP: its table of roles against the `mup` package, and the coordinate check over widths."""
