"""The work between input and shards: downloading, spooling a text in its order, several processes."""
