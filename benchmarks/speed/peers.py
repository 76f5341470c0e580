"""Servers that ours is compared with, each a process:  python benchmarks/speed/peers.py NAME PORT

    fastapi    a bare handler: bytes -> numpy -> bytes, and a health route
    kserve     a custom predictor of stock KServe, V2 with binary tensors

They answer an image with its numbers as float32, which is what a bundle whose network is the identity does.
"""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np


def serve_fastapi(port: int) -> None:
    """A handler without checks, threads, metrics or logs."""
    import fastapi
    import uvicorn

    app = fastapi.FastAPI()

    @app.post("/")
    async def predict(request: fastapi.Request) -> fastapi.Response:
        array = np.frombuffer(await request.body(), request.headers["x-dtype"])
        content = array.astype(np.float32).tobytes()
        return fastapi.Response(content, media_type="application/octet-stream")

    @app.get("/v2/health/live")
    async def live() -> dict[str, bool]:
        return {"live": True}

    uvicorn.run(app, port=port, access_log=False, log_level="error")


def serve_kserve(port: int) -> None:
    """What KServe's documentation shows, with both arguments that make the answer binary."""
    from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer

    class Identity(Model):
        def load(self) -> bool:
            self.ready = True
            return self.ready

        def predict(self, payload: InferRequest, headers: Any = None, response_headers: Any = None) -> InferResponse:
            array = payload.inputs[0].as_numpy()
            output = InferOutput("image", list(array.shape), "FP32")
            output.set_data_from_numpy(array.astype(np.float32), binary_data=True)
            return InferResponse(
                payload.id or "",
                self.name,
                [output],
                use_binary_outputs=payload.use_binary_outputs,
                requested_outputs=payload.request_outputs,
            )

    model = Identity("identity")
    model.load()
    ModelServer(http_port=port, enable_grpc=False, access_log_format=None).start([model])


SERVERS: dict[str, Callable[[int], None]] = {"fastapi": serve_fastapi, "kserve": serve_kserve}

if __name__ == "__main__":
    SERVERS[sys.argv[1]](int(sys.argv[2]))
