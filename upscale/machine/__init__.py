"""What this machine has: its compilers, its GPUs and their figures, clocks and memory."""
