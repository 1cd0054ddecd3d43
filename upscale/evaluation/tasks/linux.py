"""linux: C sources of the kernel."""

from upscale.evaluation.tasks.text import TextTask

LINUX = TextTask(
    name="linux",
    definition="C sources of the Linux kernel, runs of whitespace collapsed to one space",
    sha256="1b90835592f23f19fdbac0531ce2a7cb11022bcd88cea07a005aba906438dfe4",
)
