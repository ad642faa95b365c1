"""Building: plan first, then read, encode and commit, unit by unit."""

from __future__ import annotations

from histostore.build.options import BuildOptions, EncoderOptions
from histostore.build.pipeline import Failure
from histostore.build.report import BuildReport, Progress
from histostore.build.run import build

__all__ = ["BuildOptions", "BuildReport", "EncoderOptions", "Failure", "Progress", "build"]
