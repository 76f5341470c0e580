"""Answer a request whose image is a file at an address, while the client waits.

The file is read in the thread that predicts it: as many images are in memory as are computed at a time.
"""

import time
from collections.abc import Mapping
from typing import Any

import orjson

from cyto_dl.data.image import Image
from serving.executor import Work
from serving.messages.files import FileBody
from serving.messages.media_types import JSON, choose_media_type
from serving.messages.requests import ImageRequest
from serving.messages.responses import write_response
from serving.model import BundleModel
from serving.references.addresses import Addresses
from serving.references.transfer import Reference, read_image_at, read_reference, write_results
from serving.telemetry.observation import observation

Answer = tuple[bytes, dict[str, str]]


def answer_reference(
    model: BundleModel, document: Mapping[str, Any], headers: Mapping[str, str], work: Work, *, addresses: Addresses
) -> Answer:
    """The body and the headers of the answer: where the results are, or, without `output_uri`, the results.

    In the thread that calls this.

    Raises:
        InvalidInput, TooLarge, NotAcceptable: The request or the file is wrong.
        Closed: The address is not allowed.
        Gone, TooSlow: As `Work.check`.
    """
    reference = read_reference(document, predictor=model.predictor, limits=model.limits, addresses=addresses)
    observed = observation()
    observed.model, observed.version = model.name, model.identity.version
    observed.work, work.timeout_s = work, reference.asked.timeout_s
    work.check()
    answer = _sent if reference.output is None else _written
    return answer(model, reference, headers, work)


def _sent(model: BundleModel, reference: Reference, headers: Mapping[str, str], work: Work) -> Answer:
    outputs = {head: model.predictor.outputs[head] for head in reference.heads}
    media_type = choose_media_type(headers.get("accept", ""), outputs)
    image = _read(model, reference)
    prediction = model.predict_alone(image, reference.heads, reference.asked, work)
    takes_gzip = "gzip" in headers.get("accept-encoding", "")
    payload = FileBody(b"")  # the answer is that to a file in a body
    request = ImageRequest([image], reference.heads, reference.asked, payload, media_type, takes_gzip)
    body, content_headers = write_response(request, [prediction], model_name=model.name, labels=model.labels)
    assert isinstance(body, bytes)
    return body, content_headers


def _written(model: BundleModel, reference: Reference, headers: Mapping[str, str], work: Work) -> Answer:
    begin = time.monotonic()
    image = _read(model, reference)
    prediction = model.predict_alone(image, reference.heads, reference.asked, work)
    work.check()  # nobody may want it any more: then nothing is replaced
    outputs = write_results(prediction, image, str(reference.output), suffix=reference.suffix, labels=model.labels)
    document = {"model_name": model.name, "outputs": outputs, "seconds": round(time.monotonic() - begin, 3)}
    return orjson.dumps(document), {"content-type": JSON}


def _read(model: BundleModel, reference: Reference) -> Image:
    return read_image_at(reference.image, reference.asked, predictor=model.predictor, limits=model.limits)
