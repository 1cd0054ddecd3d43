"""Upscale: pre-train byte-level transformers on synthetic data that every rank makes on its own device."""


def load(path, device="cpu"):
    """The model of a file that `upscale export` wrote, ready on one device; see `upscale.checkpoint.export.load`."""
    from upscale.checkpoint.export import load

    return load(path, device)
