"""When the engine may run in a program under ddtrace, and by which settings.

The gate is DD_SCA_DETECTION_ENABLED, and what ddtrace itself holds of AppSec and SCA: its settings are
asked, not the variables that they come from, since Remote Configuration changes them at run time.
"""

import os
from typing import NamedTuple
from typing import Optional

import sca_probe

import ddtrace


DETECTION_VARIABLE = "DD_SCA_DETECTION_ENABLED"
PRODUCT_VARIABLE = "SCA_PROBE_RC_PRODUCT"
BUNDLED_VARIABLE = "SCA_PROBE_BUNDLED_TARGETS"

#: The lines of ddtrace that the integration is tested with: the major versions.
LINES = (2, 3, 4)


class Unsupported(Exception):
    """This ddtrace is not one that the integration knows. Its text is the reason."""


class Gate(NamedTuple):
    """Whether the engine may run: now, and if not, whether that can change while the program runs."""

    open: bool
    may_open: bool
    reason: str  # why it is closed, "" when it is open


def line() -> int:
    """The major version of ddtrace. Raises Unsupported for one that is not known."""
    version = str(ddtrace.__version__)
    major = version.split(".", 1)[0]
    if not major.isdigit() or int(major) not in LINES:
        raise Unsupported("ddtrace %s is not supported; 2.x, 3.x and 4.x are" % version)
    return int(major)


def _appsec() -> object:
    """ddtrace's settings of AppSec."""
    if line() >= 4:
        from ddtrace.internal.settings.asm import config
    else:
        from ddtrace.settings.asm import config
    return config


def sca_enabled() -> bool:
    """Whether ddtrace has SCA on. It knows a third state, not set, which is not on."""
    if line() >= 4:
        from ddtrace.internal.settings.appsec_telemetry import config

        return config.SCA_ENABLED is True
    return getattr(ddtrace.config, "_sca_enabled", None) is True


def appsec_enabled() -> bool:
    """Whether AppSec is on at this moment."""
    return bool(_appsec()._asm_enabled)  # type: ignore[attr-defined]


def gate() -> Gate:
    """The gate as it is at this moment. Raises Unsupported where ddtrace cannot be asked."""
    if not sca_probe.is_on(DETECTION_VARIABLE):
        return Gate(False, False, "%s is not 1" % DETECTION_VARIABLE)
    try:
        from ddtrace.internal.serverless import in_aws_lambda

        if not sca_enabled():
            return Gate(False, False, "SCA is off in ddtrace")
        if in_aws_lambda():
            return Gate(False, False, "AWS Lambda is not supported, as by ddtrace's own SCA")
        if appsec_enabled():
            return Gate(True, False, "")
        return Gate(False, bool(_appsec()._asm_can_be_enabled), "AppSec is off in ddtrace")  # type: ignore[attr-defined]
    except (ImportError, AttributeError) as error:
        raise Unsupported("ddtrace %s has not the settings that are asked for: %s" % (ddtrace.__version__, error))


def product() -> str:
    """The product of Remote Configuration whose configurations are ours."""
    return os.environ.get(PRODUCT_VARIABLE) or "DEBUG"


def source() -> Optional[str]:
    """Where Remote Configuration comes from, None for ddtrace's own."""
    chosen = os.environ.get(sca_probe.SOURCE_VARIABLE)
    return None if chosen in (None, "", "ddtrace") else chosen


def bundled_targets() -> bool:
    """Whether ddtrace's bundled list of vulnerable functions is instrumented too."""
    return sca_probe.is_on(BUNDLED_VARIABLE)
