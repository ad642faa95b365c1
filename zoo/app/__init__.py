"""The application: upload an image, see what a run makes of it, with the doubt it deserves.

:mod:`~zoo.app.preprocessing` makes vectors as the training had them, :mod:`~zoo.app.inference` lets
every head predict, :mod:`~zoo.app.reliability` says how often such answers were right,
:mod:`~zoo.app.twins` recognises what was trained on, :mod:`~zoo.app.drawing` and
:mod:`~zoo.app.rendering` show it, :mod:`~zoo.app.page` is what one sees in the browser,
:mod:`~zoo.app.serving` puts it there.
"""

from __future__ import annotations

from zoo.app.answers import Answer
from zoo.app.inference import Predictor
from zoo.app.serving import Server, serve

__all__ = ["Answer", "Predictor", "Server", "serve"]
