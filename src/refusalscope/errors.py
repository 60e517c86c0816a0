"""The errors a user can meet. Each message says what was got, what was expected and what mends it.

There are few on purpose: one for every kind of thing a caller can do about it.
"""

from __future__ import annotations


class RefusalscopeError(Exception):
    """Base of every error that this package raises knowingly."""


class InputError(RefusalscopeError):
    """A file, a setting or an argument is not usable as given."""


class LeakageError(InputError):
    """The same prompt, or nearly the same, stands on two sides that must be disjoint."""


class ModelError(RefusalscopeError):
    """A model cannot be loaded, rendered or read."""


class RunError(RefusalscopeError):
    """A run folder cannot be created, resumed, written or read."""


class GuardError(RefusalscopeError):
    """A guard cannot be read, or is not a guard of this model."""
