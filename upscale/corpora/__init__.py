"""Real text on disk, as webdataset shards with an index: `upscale prepare` writes corpora, `Windows` reads them."""
