"""Elastic checkpoints: one canonical form, whatever engine and world wrote it.

`checkpoints/step-XXXXXXXX/` holds safetensors files (each rank's flat float32 pieces of the parameters and their
moments, and its lanes) and `manifest.json`, which lists every piece, file, size and hash. The folder gets its name by
one rename after the manifest is complete, so a step is whole or it does not exist. Nothing in it is a pickle.
"""
