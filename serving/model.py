"""A bundle as a KServe model: check, predict, encode, without ever holding the event loop."""

import asyncio
import copy
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from grpc_interceptor.exceptions import GrpcException
from kserve import InferRequest, InferResponse, Model
from kserve.errors import InvalidInput
from kserve.model import InferenceVerb
from kserve.utils.numpy_codec import from_np_dtype

from cyto_dl.errors import ImageError
from cyto_dl.inference import Predictor
from serving.errors import ServerFault
from serving.executor import Executor, SharedNetwork, Work
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
        timeout_s: Seconds that one request may take.
    """

    def __init__(self, name: str, predictor: Predictor, executor: Executor, *, timeout_s: float = 300) -> None:
        super().__init__(name, return_response_headers=True)
        self._predictor = predictor
        self._executor = executor
        self._timeout_s = timeout_s
        self.ready = True

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
        return await asyncio.to_thread(read_request, payload, headers or {}, spec=self._predictor.input, heads=heads)

    async def predict(
        self,
        request: ImageRequest,
        headers: Mapping[str, str] | None = None,
        response_headers: dict[str, str] | None = None,
    ) -> tuple[ImageRequest, Predictions]:
        """The predictions of a request's images."""
        work = Work(self._timeout_s)
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

    def _predict_images(self, request: ImageRequest, work: Work) -> Predictions:
        predictor = self._predictor
        shared = SharedNetwork(
            predictor.network,
            self.name,
            predictor.window.batch_size,
            self._executor.device,
            work,
            tuple(predictor.network.heads),
        )
        # MONAI's transforms note their state on themselves while they are undone: every request has its own.
        predictor = replace(predictor, network=shared, preprocess=copy.deepcopy(list(predictor.preprocess)))
        try:
            return [predictor.predict(image, heads=request.heads) for image in request.images]
        except ImageError as error:
            raise InvalidInput(str(error)) from error
