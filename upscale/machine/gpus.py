"""The GPUs this project knows: figures of their data sheets, for MFU and for planning without one."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Device:
    """One GPU: dense bfloat16 peak in FLOP/s, memory and its bandwidth, and what a link to another GPU of its node
    carries one way, in bytes and bytes per second."""

    peak_flops: float
    memory_bytes: float
    memory_bandwidth: float
    link_bandwidth: float


DEVICES = {
    "b200": Device(2.25e15, 180e9, 8.0e12, 900e9),
    "h200": Device(989e12, 141e9, 4.8e12, 450e9),
    "gh200": Device(989e12, 96e9, 4.0e12, 450e9),
    "h100": Device(989e12, 80e9, 3.35e12, 450e9),
    "h100-nvl": Device(835e12, 94e9, 3.9e12, 300e9),
    "h100-pcie": Device(756e12, 80e9, 2.0e12, 64e9),
    "a100-80": Device(312e12, 80e9, 2.04e12, 300e9),
    "a100-40": Device(312e12, 40e9, 1.56e12, 300e9),
    "l40s": Device(362e12, 48e9, 0.864e12, 32e9),
    "a6000": Device(155e12, 48e9, 0.768e12, 32e9),
}

# What CUDA calls them; the first name found in the device's name counts.
CUDA_NAMES = {
    "B200": "b200",
    "GH200": "gh200",
    "H200": "h200",
    "H100 PCIe": "h100-pcie",
    "H100 NVL": "h100-nvl",
    "H100": "h100",
    "A100": "a100-80",
    "L40S": "l40s",
    "A6000": "a6000",
}


def data_sheet(device: torch.device) -> Device | None:
    """The figures of this machine's device; None where they are not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((DEVICES[key] for part, key in CUDA_NAMES.items() if part in name), None)


def peak_flops(device: torch.device) -> float | None:
    """The data sheet's bfloat16 peak of this machine's device, None where it is not known."""
    sheet = data_sheet(device)
    return sheet.peak_flops if sheet else None
