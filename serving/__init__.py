"""The KServe server around `cyto_dl.inference.Predictor`: `python -m serving --bundle PATH`.

    rest, grpc_server --> messages (bytes -> checked images) --> model --> executor (one thread per device)
                      <-- messages (heads' images -> bytes)  <--

`serving.messages.requests` says what a client may send, `serving.messages.responses` what comes back. Images at an
address come through `serving.references`, volumes that nobody waits for through `serving.jobs`; `serving.telemetry`
tells of it all. `settings` is what the operator says, `assembly` makes a server of it.
"""
