"""CPU operators, compiled by numba on first use and kept in its cache.

The cache lies beside the sources, below the user's cache folder if these are not writable, or in NUMBA_CACHE_DIR. If
none is writable numba would refuse to import; a folder for this process alone takes its place then.
"""

import logging
import tempfile

import numba

__all__: list[str] = []

logger = logging.getLogger(__name__)

_kept: list[tempfile.TemporaryDirectory] = []  # removed when the process ends


def _nothing() -> None:
    """Do nothing; numba looks for a place for its cache when it decorates this."""


def _find_a_cache() -> None:
    try:
        numba.njit(cache=True)(_nothing)
    except RuntimeError:
        # Not a fixed name in a shared folder: what lies in the cache is loaded as code.
        _kept.append(tempfile.TemporaryDirectory(prefix="i2p-numba-"))
        numba.config.CACHE_DIR = _kept[0].name  # type: ignore[attr-defined]  # set when numba is loaded
        logger.warning(
            "neither %s nor the user's cache folder is writable, so every process compiles the operators again; set "
            "NUMBA_CACHE_DIR to a writable folder",
            __path__[0],
        )


_find_a_cache()
