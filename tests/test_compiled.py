"""What a run on a GPU needs for compiling, asked for before anything starts: against real and missing compilers."""

from __future__ import annotations

import sysconfig

import pytest

from upscale.errors import LaunchError
from upscale.machine import compiler


@pytest.fixture(autouse=True)
def triton(monkeypatch):
    monkeypatch.setattr(compiler, "triton_found", lambda: True)


def test_a_compiler_with_pythons_header_is_accepted():
    compiler.check_kernel_compiler("cuda")


def test_nothing_is_asked_of_a_machine_without_a_gpu(monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    compiler.check_kernel_compiler("cpu")


def test_a_missing_compiler_is_said_with_what_to_install(monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(LaunchError, match=r"(?s)node .*no-such-compiler.*Install gcc"):
        compiler.check_kernel_compiler("cuda")


def test_a_missing_header_is_said_with_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.delenv("CPATH", raising=False)
    with pytest.raises(LaunchError, match=r"(?s)Python\.h.*python3-dev"):
        compiler.check_kernel_compiler("cuda")
