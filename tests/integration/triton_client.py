"""Ask a server with Triton's own clients:  python triton_client.py http|grpc ADDRESS MODEL IMAGE.npy ANSWER.npz

In a process of its own: its protobuf messages have the names of KServe's, and only one of the two can be loaded.
"""

import json
import sys

import numpy as np


def main(protocol, address, model, source, target):
    if protocol == "http":
        from tritonclient import http as triton
    else:
        from tritonclient import grpc as triton
    image = np.load(source)
    with triton.InferenceServerClient(address) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready(model)
        metadata = client.get_model_metadata(model)
        metadata = metadata if protocol == "http" else {"platform": metadata.platform}
        tensor = triton.InferInput("raw", [1, *image.shape], "UINT16")
        tensor.set_data_from_numpy(image[None])
        seg, distance = triton.InferRequestedOutput("seg"), triton.InferRequestedOutput("distance")
        answer = client.infer(model, [tensor], outputs=[seg, distance], parameters={"overlap": "0.25"})
        faults = []
        for wrong in ({"overlap": "0.9"}, {"unheard_of": 1}):
            try:
                client.infer(model, [tensor], parameters=wrong)
            except triton.InferenceServerException as error:
                faults.append(f"{error.status()}: {error.message()}")
    np.savez(
        target,
        seg=answer.as_numpy("seg"),
        distance=answer.as_numpy("distance"),
        told=json.dumps({"platform": metadata["platform"], "faults": faults}),
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
