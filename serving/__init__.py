"""The KServe server around `cyto_dl.inference.Predictor`: `python -m serving --bundle PATH`.

    request -> dataplane (bytes -> tensors) -> requests (tensors -> checked images) -> model (one predict thread)
            -> responses (arrays -> bytes) -> client

`docs` of the wire: `serving.requests` says what is accepted, `serving.responses` what comes back.
"""
