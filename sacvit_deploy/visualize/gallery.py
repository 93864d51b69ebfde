"""Thumbnails of answers, as cards of an HTML page."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from html import escape
from pathlib import PurePath

from PIL import Image

from sacvit_deploy.errors import ImageError
from sacvit_deploy.evaluation.predictions import Prediction
from sacvit_deploy.runtime.pictures import read_reduced
from sacvit_deploy.samples import Sample
from sacvit_deploy.spec import Role

THUMBNAIL_PIXELS = 128
"""Longer side of a thumbnail at most."""

_JPEG_QUALITY = 80
_STAGES: dict[Role, str] = {"early_exit": ", early exit", "refine": ", second stage"}


def gallery(predictions: Iterable[Prediction]) -> str:
    """Cards with the picture, its class, the answer, its probability and the stage it is from.

    A picture that cannot be read any more has a card without a thumbnail.
    """
    return f'<ul class="gallery">{"".join(map(_card, predictions))}</ul>'


def _card(prediction: Prediction) -> str:
    result, name = prediction.result, prediction.sample.path
    data = _thumbnail(prediction.sample)
    picture = f'<img src="{data}" alt="">' if data else "<i>cannot be read any more</i>"
    answer = f"taken for {result.label}"
    sure = f"{result.probability:.1%}{_STAGES.get(result.stage, '')}"
    return (
        f'<li title="{escape(name)}"><div>{picture}</div><b>{escape(prediction.true_label)}</b>'
        f"<span>{escape(answer)}</span><small>{sure}</small>"
        f"<small>{escape(PurePath(name).name)}</small></li>"
    )


def _thumbnail(sample: Sample) -> str:
    """A small JPEG as a data URI; empty if the picture cannot be read."""
    try:
        picture = read_reduced(sample, (THUMBNAIL_PIXELS, THUMBNAIL_PIXELS)).picture
    except ImageError:
        return ""
    picture.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=_JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"
