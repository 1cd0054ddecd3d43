"""Devices: each one's matrix products, memory and copies to it, and whether a product is right."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from upscale.doctor.base import PROBLEM, Check, Record, Session, flag_slow, seconds, with_problem
from upscale.machine.gpus import data_sheet

PRODUCT_SECONDS = 0.02
"""A product that takes less is too small to tell the device's speed."""
SMALLEST, LARGEST = 256, 16_384
EXACT_SIZE, EXACT_ONES = 512, 32
COPIED_BYTES = {"cuda": 512 << 20, "cpu": 64 << 20}
"""More than any cache."""
HOST_BYTES = 128 << 20
LEAST_SHARE = 0.5
"""Of the data sheet: what a healthy GPU reaches by far, in products and in memory."""
PRODUCT, MEMORY = "matrix products", "memory bandwidth"
TO_DEVICE, FROM_DEVICE = "copy to the device", "copy from the device"
ADVICE = {
    "cuda": "Look at its clocks, temperature and errors (nvidia-smi -q -d CLOCK,TEMPERATURE,ECC,PERFORMANCE) and for "
    "other processes on it, and leave its node out (sbatch --exclude=NODE): every step waits for the slowest rank",
    "cpu": "Look for other processes on this node (top) and at its clocks, and leave it out (sbatch --exclude=NODE): "
    "every step waits for the slowest rank",
}


class Devices(Check):
    kind = "devices"

    def measure(self, session: Session) -> list[Record]:
        device = session.device
        session.world.barrier()  # all at once, as in training, where neighbours share power and memory
        dtype = torch.bfloat16 if session.config.engine.in_bfloat16 else torch.float32
        wrong = (
            None
            if product_is_right(device, dtype)
            else f"A product of small whole numbers is wrong. {ADVICE[device.type]}"
        )
        rate = product_flops(device, dtype)
        found = [
            self.record(session, PRODUCT, rate / 1e12, "TFLOP/s", wrong),
            self.record(session, MEMORY, copy_bytes_per_second(device) / 1e9, "GB/s"),
        ]
        if device.type == "cuda":
            found.append(self.record(session, TO_DEVICE, host_bytes_per_second(device, True) / 1e9, "GB/s"))
            found.append(self.record(session, FROM_DEVICE, host_bytes_per_second(device, False) / 1e9, "GB/s"))
            found = [self._beside_the_sheet(one, device, dtype) for one in found]
        return found

    def judge(self, records: Sequence[Record], session: Session) -> list[Record]:
        kind = session.device.type
        return flag_slow(records, (PRODUCT, MEMORY, TO_DEVICE, FROM_DEVICE), kind, ADVICE[kind])

    def _beside_the_sheet(self, record: Record, device: torch.device, dtype: torch.dtype) -> Record:
        sheet = data_sheet(device)
        peaks = {MEMORY: sheet.memory_bandwidth / 1e9} if sheet else {}
        if sheet and dtype == torch.bfloat16:  # the sheet's
            peaks[PRODUCT] = sheet.peak_flops / 1e12
        peak = peaks.get(record.name)
        if peak is None or record.verdict == PROBLEM or record.number >= LEAST_SHARE * peak:
            return record
        text = f"{record.number / peak:.0%} of the data sheet's {peak:.4g} {record.unit}. {ADVICE['cuda']}"
        return with_problem(record, text)


def product_is_right(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a product of matrices of -1, 0 and 1, whose sums no rounding changes, is what integers give."""
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (EXACT_SIZE, EXACT_SIZE), generator=generator) * 2 - 1
    right = torch.randint(-1, 2, (EXACT_SIZE, EXACT_SIZE), generator=generator)
    left = torch.zeros_like(signs)
    left[:, :: EXACT_SIZE // EXACT_ONES] = signs[:, :: EXACT_SIZE // EXACT_ONES]
    product = left.to(device, dtype) @ right.to(device, dtype)
    return torch.equal(product.cpu().long(), left @ right)


def product_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of square products, of a size that takes PRODUCT_SECONDS or is LARGEST."""
    size = SMALLEST
    while True:
        matrix = torch.full((size, size), 1 / size, dtype=dtype, device=device)
        taken = seconds(partial(torch.mm, matrix, matrix, out=torch.empty_like(matrix)), device)
        if taken >= PRODUCT_SECONDS or size >= LARGEST:
            return 2 * size**3 / taken
        # At once to where it should take long enough; twice as large is eight times the work.
        size = min(LARGEST, max(2 * size, size * int((PRODUCT_SECONDS / taken) ** (1 / 3))))


def copy_bytes_per_second(device: torch.device) -> float:
    """Bytes read and written a second by copying within the device's memory."""
    source = torch.zeros(COPIED_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / seconds(lambda: target.copy_(source), device)


def host_bytes_per_second(device: torch.device, to_device: bool) -> float:
    """Bytes a second between pinned memory of this machine and the GPU's."""
    host = torch.zeros(HOST_BYTES, dtype=torch.uint8, pin_memory=True)
    there = torch.zeros(HOST_BYTES, dtype=torch.uint8, device=device)
    source, target = (host, there) if to_device else (there, host)
    return HOST_BYTES / seconds(lambda: target.copy_(source, non_blocking=True), device)
