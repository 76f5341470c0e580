"""A bundle as a KServe model: check, predict, encode, without ever holding the event loop."""

import asyncio
import copy
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from grpc_interceptor.exceptions import GrpcException
from kserve import InferRequest, InferResponse, Model
from kserve.errors import InvalidInput
from kserve.model import InferenceVerb
from kserve.utils.numpy_codec import from_np_dtype

from cyto_dl.errors import ImageError
from cyto_dl.inference import Predictor
from serving.drift import Training, judge
from serving.errors import ServerFault
from serving.executor import Executor, SharedNetwork, Work
from serving.identity import UNKNOWN, Identity
from serving.limits import DEFAULTS, Limits
from serving.observation import observation
from serving.requests import DATATYPES, ImageRequest, read_request
from serving.responses import Predictions, write_response

logger = logging.getLogger(__name__)


class BundleModel(Model):
    """Answers V1 and V2 requests with a `Predictor` that is already loaded and replayed, hence ready.

    Bodies are read and written in asyncio's threads, images are predicted by the executor.

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
        self._predictor, self._executor = predictor, executor
        self.limits, self.identity = limits, identity
        self._drift = drift
        self._training = Training.of(predictor.metadata, predictor.input.name)
        if self._training is None:
            logger.info("%s does not say what its training images were like: drift is not measured", name)
        self.ready = True

    def warm_up(self) -> None:
        """Run the network once over a full batch of windows, in the thread that will run it.

        The first batch of a shape is slow: kernels are chosen, and threads started.
        """
        predictor, window = self._predictor, self._predictor.window
        if window.roi_size is not None:  # else windows are as large as images, and the sample was one
            shape = (window.batch_size, predictor.input.num_channels, *window.roi_size)
            self._shared(Work(self.limits.timeout_s))(torch.zeros(shape, device=predictor.device))

    def load(self) -> bool:
        """Whether the model can predict. KServe calls this for a model that was stopped; it stays so."""
        return bool(self.ready)

    async def __call__(
        self,
        body: InferRequest | dict[str, Any] | bytes,
        headers: Mapping[str, str] | None = None,
        verb: InferenceVerb = InferenceVerb.PREDICT,
    ) -> tuple[InferResponse | bytes, dict[str, str]]:
        """The answer to one request, and its HTTP headers.

        Raises:
            InvalidInput: The request is wrong.
            NotImplementedError: The verb is not PREDICT.
            Busy, TooSlow, Gone: There is no room, or no time; the client went away.
            ServerFault: Anything else went wrong; the log has the trace under the fault's id.
        """
        if verb != InferenceVerb.PREDICT:
            raise NotImplementedError("this server predicts; it does not explain")
        observed = observation()
        observed.model, observed.version = self.name, self.identity.version
        try:
            return await super().__call__(body, dict(headers or {}), verb)
        except (InvalidInput, GrpcException):
            raise
        except Exception as error:
            fault = ServerFault()
            logger.exception("request to %s failed (id %s)", self.name, fault.id)
            raise fault from error

    async def preprocess(
        self, payload: InferRequest | dict[str, Any] | bytes, headers: Mapping[str, str] | None = None
    ) -> ImageRequest:
        """The checked images and heads of a request."""
        heads = list(self._predictor.outputs)
        request = await asyncio.to_thread(
            read_request, payload, headers or {}, spec=self._predictor.input, heads=heads, limits=self.limits
        )
        observation().num_voxels = sum(image.size for image in request.images)
        await self._check_drift(request)
        return request

    async def _check_drift(self, request: ImageRequest) -> None:
        """Note how far the images are from the training's; the farthest counts."""
        if self._training is None:
            return
        worst = await asyncio.to_thread(self._training.compare_all, request.images)
        observed = observation()
        observed.drift_scores = {finding.quantity: finding.score for finding in worst}
        verdict = judge(worst, self._drift)
        if self._drift != "accept":
            observed.drift = verdict

    async def predict(
        self,
        request: ImageRequest,
        headers: Mapping[str, str] | None = None,
        response_headers: dict[str, str] | None = None,
    ) -> tuple[ImageRequest, Predictions]:
        """The predictions of a request's images."""
        observation().work = work = Work(self.limits.timeout_s)
        return request, await self._executor.run(work, lambda: self._predict_images(request, work))

    async def postprocess(
        self,
        result: tuple[ImageRequest, Predictions],
        headers: Mapping[str, str] | None = None,
        response_headers: dict[str, str] | None = None,
    ) -> InferResponse | bytes:
        """The encoded answer; its HTTP headers are added to `response_headers`."""
        response, content_headers = await asyncio.to_thread(write_response, *result, model_name=self.name)
        if response_headers is not None:
            response_headers.update(content_headers)
        return response

    def get_input_types(self) -> list[dict[str, Any]]:
        """The input tensor as V2 metadata: FP32 is what the network computes with, `DATATYPES` what is accepted."""
        spec = self._predictor.input
        shape = [-1, spec.num_channels, *[-1] * spec.spatial_dims]
        return [{"name": spec.name, "datatype": "FP32", "shape": shape}]

    def get_output_types(self) -> list[dict[str, Any]]:
        """One tensor per head as V2 metadata."""
        return [
            {
                "name": head,
                "datatype": from_np_dtype(np.dtype(output["dtype"])),
                "shape": [-1, output["channels"], *[-1] * (len(output["axes"]) - 1)],
            }
            for head, output in self._predictor.outputs.items()
        ]

    def tensor_parameters(self) -> dict[str, dict[str, Any]]:
        """What V2 metadata has no field for, per tensor: axes, and the datatypes that the input may come in."""
        spec = self._predictor.input
        outputs = {head: {"axes": f"N{output['axes']}"} for head, output in self._predictor.outputs.items()}
        return {spec.name: {"axes": f"N{spec.axes}", "datatypes": list(DATATYPES)}, **outputs}

    def _shared(self, work: Work) -> SharedNetwork:
        network = self._predictor.network
        batch_size, device = self._predictor.window.batch_size, self._executor.device
        return SharedNetwork(network, self.name, batch_size, device, work, tuple(network.heads))

    def _predict_images(self, request: ImageRequest, work: Work) -> Predictions:
        predictor = self._predictor
        # MONAI's transforms note their state on themselves while they are undone: every request has its own.
        preprocess = copy.deepcopy(list(predictor.preprocess))
        predictor = replace(predictor, network=self._shared(work), preprocess=preprocess)
        try:
            return [predictor.predict(image, heads=request.heads) for image in request.images]
        except ImageError as error:
            raise InvalidInput(str(error)) from error
