"""LitServe as one of `peers`, where it is installed; CytoDL does not need it:  python peer_litserve.py PORT

It has no binary bodies: what is not JSON has to be a form, which its queue does not take. Hence base64 in JSON, and raw
bytes back. Its worker is a process of its own that imports this file again.
"""

import base64
import sys

import fastapi
import litserve  # type: ignore[import-not-found]
import numpy as np


class Identity(litserve.LitAPI):
    """The image back, float32."""

    def setup(self, device: str) -> None:
        """Nothing to load."""

    def decode_request(self, request: dict[str, str]) -> np.ndarray:
        """The values, in the worker."""
        return np.frombuffer(base64.b64decode(request["image"]), request["dtype"])

    def predict(self, array: np.ndarray) -> np.ndarray:
        """The values as float32."""
        return array.astype(np.float32)

    def encode_response(self, output: np.ndarray) -> fastapi.Response:
        """Raw bytes."""
        return fastapi.Response(output.tobytes(), media_type="application/octet-stream")


if __name__ == "__main__":
    server = litserve.LitServer(Identity(), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="error")
