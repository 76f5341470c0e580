"""A bundle as a KServe model: check, predict, encode, without ever holding the event loop."""

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from grpc_interceptor.exceptions import GrpcException
from kserve import Model
from kserve.errors import InvalidInput, ModelNotFound, ModelNotReady
from kserve.model import InferenceVerb

from cyto_dl.data.image import Image
from cyto_dl.errors import ConfigError, ImageError
from cyto_dl.inference import Predictor
from cyto_dl.inference.parameters import with_parameters
from cyto_dl.model.utils.postprocessing import gives_labels
from serving.errors import ServerFault
from serving.executor import CountedWindow, Executor, SharedNetwork, Work
from serving.identity import UNKNOWN, Identity
from serving.limits import DEFAULTS, Limits
from serving.messages.metadata import describe_model
from serving.messages.parameters import Asked
from serving.messages.requests import ImageRequest, Payload, read_request
from serving.messages.responses import Answer, Predictions, write_response
from serving.telemetry.drift import Training, describe, refuse_unusual
from serving.telemetry.observation import observation

logger = logging.getLogger(__name__)


class BundleModel(Model):
    """Answers V1 and V2 requests with a `Predictor` that is already loaded and replayed, hence ready.

    A request is read, predicted and written in one thread of the executor: as many are unpacked at a time as run.

    Args:
        name: In the addresses.
        predictor: Of the bundle.
        executor: That all models of a server share.
        limits: Of one request.
        identity: Of the bundle.
        drift: What to do with images unlike the training's: "accept", "warn" or "refuse".
    """

    def __init__(
        self,
        name: str,
        predictor: Predictor,
        executor: Executor,
        *,
        limits: Limits = DEFAULTS,
        identity: Identity = UNKNOWN,
        drift: str = "warn",
    ) -> None:
        super().__init__(name, return_response_headers=True)
        self.predictor, self.executor = predictor, executor
        self.limits, self.identity = limits, identity
        self.labels = frozenset(head for head, each in predictor.postprocess.items() if gives_labels(each))
        self._drift = drift
        self._training = Training.of(predictor.metadata, predictor.input.name)
        if self._training is None:
            logger.info("%s does not say what its training images were like: drift is not measured", name)
        self.ready = True

    def warm_up(self) -> None:
        """Run the network once over a full batch of windows, in the thread that will run it.

        The first batch of a shape is slow: kernels are chosen, and threads started.
        """
        predictor, window = self.predictor, self.predictor.window
        if window.roi_size is not None:  # else windows are as large as images, and the sample was one
            shape = (window.batch_size, predictor.input.num_channels, *window.roi_size)
            self._shared(Work(self.limits.timeout_s))(torch.zeros(shape, device=predictor.device))

    def load(self) -> bool:
        """Whether the model can predict. KServe calls this for a model that was stopped; it stays so."""
        return bool(self.ready)

    async def __call__(
        self,
        body: Payload,
        headers: Mapping[str, str] | None = None,
        verb: InferenceVerb = InferenceVerb.PREDICT,
    ) -> Answer:
        """The answer to one request, and its HTTP headers; what KServe's gRPC side calls.

        Raises:
            NotImplementedError: The verb is not PREDICT.
            ModelNotReady: It was stopped.
            Busy: There is no room.
            And what `answer` raises.
        """
        if verb != InferenceVerb.PREDICT:
            raise NotImplementedError("this server predicts; it does not explain")
        if not self.ready:  # KServe asks only over REST
            raise ModelNotReady(self.name)
        work = Work(self.limits.timeout_s)
        return await self.executor.run(work, lambda: self.answer(body, headers or {}, work))

    def answer(self, payload: Payload, headers: Mapping[str, str], work: Work) -> Answer:
        """The answer to one request, in the thread that calls this: a V2 response or a body, and its HTTP headers.

        Raises:
            InvalidInput, ModelNotFound, TooLarge, NotAcceptable: The request is wrong.
            Gone, TooSlow: As `Work.check`.
            ServerFault: Anything else went wrong; the log has the trace under the fault's id.
        """
        observed = observation()
        observed.model, observed.version = self.name, self.identity.version
        with self._faults():
            request = self.read(payload, headers)
            observed.work, work.timeout_s = work, request.asked.timeout_s
            work.check()
            predictions = self._predict_images(request.images, request.heads, request.asked, work)
            return write_response(request, predictions, model_name=self.name, labels=self.labels)

    def read(self, payload: Payload, headers: Mapping[str, str]) -> ImageRequest:
        """The checked images and heads of a request."""
        request = read_request(payload, headers, predictor=self.predictor, limits=self.limits)
        observation().num_voxels = sum(image.array.size for image in request.images)
        self._check_drift(request.images)
        return request

    @contextmanager
    def _faults(self) -> Iterator[None]:
        """What is not the client's fault is the server's, NotImplementedError of a library too."""
        try:
            yield
        except (InvalidInput, ModelNotFound, GrpcException):
            raise
        except Exception as error:
            fault = ServerFault()
            logger.exception("request to %s failed (id %s)", self.name, fault.id)
            raise fault from error

    def _check_drift(self, images: Sequence[Image]) -> None:
        """Note how far the images are from the training's; the farthest counts."""
        if self._training is None:
            return
        worst = self._training.compare_all(images)
        observed = observation()
        observed.drift_scores = {finding.quantity: finding.score for finding in worst}
        if self._drift != "accept":
            observed.drift = describe(worst)
        if self._drift == "refuse":
            refuse_unusual(worst)

    def predict_alone(self, image: Image, heads: Sequence[str], asked: Asked, work: Work) -> dict[str, np.ndarray]:
        """The prediction of an image that was read in the thread that calls this: a file at an address, or a job's.

        Raises:
            InvalidInput: The model does not take it, or it is unlike the training's images and these are refused.
            Gone, TooSlow: As `Work.check`.
        """
        observed = observation()
        observed.version, observed.num_voxels = self.identity.version, image.array.size
        self._check_drift([image])
        return self._predict_images([image], heads, asked, work)[0]

    def metadata(self) -> dict[str, Any]:
        """What the server tells of the model; over gRPC the version is in the trailing metadata only."""
        observation().version = self.identity.version
        return describe_model(self.name, self.predictor, self.identity, self.limits)

    def _shared(self, work: Work) -> SharedNetwork:
        network = self.predictor.network
        batch_size, device = self.predictor.window.batch_size, self.executor.device
        # A bundle that is loaded anew has the name of the one before, which may still have requests to finish.
        name = f"{self.name} {self.identity.sha256}"
        return SharedNetwork(network, name, batch_size, device, work, tuple(network.heads))

    def _predict_images(self, images: Sequence[Image], heads: Sequence[str], asked: Asked, work: Work) -> Predictions:
        predictor = with_parameters(self.predictor, asked.model)
        # MONAI's transforms note their state on themselves while they are undone: every request has its own.
        preprocess = copy.deepcopy(list(predictor.preprocess))
        window = CountedWindow(**vars(predictor.window), work=work)
        predictor = replace(predictor, network=self._shared(work), preprocess=preprocess, window=window)
        try:
            return [predictor.predict(image, heads=heads) for image in images]
        except (ImageError, ConfigError) as error:  # the image is too deep for a head's windows, say
            raise InvalidInput(str(error)) from error
