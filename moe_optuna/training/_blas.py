"""Whose `sgemm` the compiled step calls: torch's own, which is MKL's on x86, or OpenBLAS'.

MKL keeps to AVX2 where the processor is not Intel's. On one of AMD's with AVX-512 OpenBLAS takes half of its time, for
small products as well. Either works in the thread that calls it: the step divides its products among threads by itself.
"""

from __future__ import annotations

import ctypes
import os
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from moe_optuna.errors import InputError

__all__ = ["sgemm"]

_CHOICE = "MOE_OPTUNA_BLAS"
_THREADS = "OPENBLAS_NUM_THREADS"


@lru_cache(maxsize=1)
def sgemm() -> Any:
    """BLAS' Fortran function, of 32-bit integers.

    The choice depends on the processor alone, so that a resumed training has the bits of an uninterrupted one;
    ``$MOE_OPTUNA_BLAS`` (``torch`` or ``openblas``) overrides it.

    Raises:
        InputError: Where the variable has another value, or there is no OpenBLAS to be had.
        OSError, AttributeError: Where torch's library has no such function.
    """
    chosen = os.environ.get(_CHOICE)
    if chosen not in (None, "torch", "openblas"):
        raise InputError(f"{chosen!r}, expected torch or openblas", where=_CHOICE)
    if chosen == "openblas" or (chosen is None and _is_amd()):
        try:
            return _openblas()
        except (OSError, AttributeError) as error:
            if chosen is not None:
                raise InputError(f"'openblas', but it cannot be loaded: {error}", where=_CHOICE) from None
    return ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")).sgemm_


def _openblas() -> Any:
    """From a copy of the library that is nobody else's, so that those of numpy and scipy keep their threads."""
    package = find_spec("scipy_openblas32")  # to import it would load the library for all of the process
    folders = package.submodule_search_locations if package else None
    files = [file for folder in folders or () for file in Path(folder).glob("lib/libscipy_openblas*.so")]
    if not files:
        raise OSError("there is no package scipy-openblas32")
    threads = os.environ.get(_THREADS)
    os.environ[_THREADS] = "1"  # as it is loaded it starts threads, which would wait in a loop
    try:
        return ctypes.CDLL(str(files[0])).scipy_sgemm_
    finally:
        if threads is None:
            del os.environ[_THREADS]
        else:
            os.environ[_THREADS] = threads


def _is_amd() -> bool:
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux, for which alone there is a package
        return False
