"""Errors of a run whose corpus or store cannot be reached."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from engine.errors import PlaceError, RunError, TransientError


@contextmanager
def outages_as_run_errors() -> Iterator[None]:
    """Raise RunError in place of an error of a bucket, folder or server, raised here or in a worker."""
    try:
        yield
    except (PlaceError, TransientError) as error:
        # Ray's error of a worker holds a traceback as text; the error that the worker raised is its cause.
        original = getattr(error, "cause", None) or error
        raise RunError(f"{original}; the run has stopped, and the same command goes on") from error
