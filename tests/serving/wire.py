"""What a client does: make the bytes of a request, read those of a response."""

import io
import json

import numpy as np

LENGTH = "Inference-Header-Content-Length"
DATATYPES = {"uint8": "UINT8", "uint16": "UINT16", "int16": "INT16", "float32": "FP32", "float64": "FP64"}
DTYPES = {"UINT8": np.uint8, "UINT16": np.uint16, "UINT32": np.uint32, "FP32": np.float32}


def tensor(array, *, name="raw", **changes):
    """The V2 description of `array` with its values."""
    datatype = DATATYPES[str(array.dtype)]
    return {"name": name, "shape": list(array.shape), "datatype": datatype, "data": array.ravel().tolist()} | changes


def binary_request(array, *, name="raw", outputs=None, binary_output=True, **changes):
    """Body and headers of a V2 request with `array` as binary tensor; `changes` spoil its description."""
    description = tensor(array, name=name, parameters={"binary_data_size": array.nbytes})
    del description["data"]
    header = {"inputs": [description | changes], "parameters": {"binary_data_output": binary_output}}
    if outputs:
        header["outputs"] = [{"name": output} for output in outputs]
    text = json.dumps(header).encode()
    return text + array.tobytes(), {LENGTH: str(len(text)), "Content-Type": "application/octet-stream"}


def read_tensors(response):
    """The tensors of a V2 response, JSON or binary."""
    length = int(response.headers.get(LENGTH, len(response.content)))
    tensors, rest = {}, response.content[length:]
    for output in json.loads(response.content[:length])["outputs"]:
        dtype = DTYPES[output["datatype"]]
        if "data" in output:
            flat = np.array(output["data"], dtype)
        else:
            size = output["parameters"]["binary_data_size"]
            flat, rest = np.frombuffer(rest[:size], dtype), rest[size:]
        tensors[output["name"]] = flat.reshape(output["shape"])
    assert not rest
    return tensors


def npy(array):
    """The bytes of `array` as numpy.save writes it."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()
