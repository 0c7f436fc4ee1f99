"""Serving: a pipe behind the Open Inference Protocol v2, over HTTP and gRPC, and in one's own web service.

    fastpipe serve pipeline.toml                          the command
    app.mount("/v2", fastpipe.serve.app(pipe))            in FastAPI or Starlette
    @app.post("/ocr") ... fastpipe.serve.endpoint(pipe)   behind a route of one's own

The parts, from the wire to the pipe: ``tensors`` are the protocol's data types as arrays; ``signature`` says what is
announced, and makes requests of tensors and tensors of answers; ``answering`` runs one call; ``repository`` has the
models; ``statuses`` says what an error is on the wire. None of these knows whether a call came by HTTP or by gRPC.
"""
