"""The KServe server around `cyto_dl.inference.Predictor`: `python -m serving --bundle PATH`.

    request -> dataplane (bytes -> tensors) -> requests (tensors -> checked images) -> model (one predict thread)
            -> responses (arrays -> bytes) -> client

`serving.requests` says what a client may send, `serving.responses` what comes back.
"""
