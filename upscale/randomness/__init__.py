"""Random numbers as pure functions of keys: streams.py says what is drawn, philox.py makes the words on a GPU."""
