"""Training rows: lanes that sources write, windows of corpora, and drawing them ahead of the step that needs them."""
