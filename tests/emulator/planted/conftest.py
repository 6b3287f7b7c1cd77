"""The compiler, as for the microkernels."""

from tests.hopper.conftest import microkernels  # noqa: F401
